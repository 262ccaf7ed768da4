"""Other forms of one answer: signs written out, vectors as tuples, matrices calculated, derivatives alike."""

from ..expression import Kind, Node, negated, number, symbol

_LARGEST_MATRIX = 36  # entries of a product
_MOST_FACTORS = 6
_UNIT_VECTORS = ("unit i", "unit j", "unit k")


def signed(node: Node, sign: int) -> Node:
    """The node with every `\\pm` read as `sign` and every `\\mp` as its opposite."""
    args = tuple(signed(arg, sign) for arg in node.args)
    if node.kind in (Kind.PM, Kind.MP):
        return args[0] if (sign > 0) == (node.kind is Kind.PM) else negated(args[0])
    return node.with_args(args)


def replaced(node: Node, values: dict[str, Node]) -> Node:
    """The node with other nodes in the place of variables."""
    if node.kind is Kind.SYMBOL:
        return values.get(node.value, node)
    return node.with_args(tuple(replaced(arg, values) for arg in node.args)) if node.args else node


def as_vector(node: Node, other: Node) -> Node:
    """`\\mathbf{i} - 2\\mathbf{j}` as `(1, -2)`; a lone bold i is the imaginary unit."""
    if not node.args and node.kind is not Kind.SYMBOL:
        return node
    used = {part.value for part in node.walk() if part.kind is Kind.SYMBOL} & set(_UNIT_VECTORS)
    if not used or node.kind in (Kind.RELATION, Kind.LIST):
        return node
    if used == {"unit i"} and other.kind not in (Kind.GROUP, Kind.MATRIX):
        return replaced(node, {"unit i": Node(Kind.CONSTANT, (), "i")})
    size = 3 if "unit k" in used or len(other.args) == 3 else 2
    components = []
    for wanted in _UNIT_VECTORS[:size]:
        components.append(replaced(node, {name: number(int(name == wanted)) for name in _UNIT_VECTORS}))
    return Node(Kind.GROUP, tuple(components), "()")


def with_derivatives_alike(first: Node, second: Node) -> tuple[Node, Node]:
    """Both answers with `\\frac{dy}{dx}` as `y'`, where one of them writes all its derivatives with primes or dots."""
    primed = [
        {str(p.value) for p in n.walk() if p.kind is Kind.SYMBOL and "'" in str(p.value)} for n in (first, second)
    ]
    variables = [{name.partition("|")[2] for name in names} for names in primed]
    if variables[0] == variables[1] or not all(primed) or {""} not in variables or max(map(len, variables)) > 1:
        return first, second
    plain = {name: symbol(name.partition("|")[0]) for names in primed for name in names}
    return replaced(first, plain), replaced(second, plain)


def matrix_value(node: Node) -> Node:
    """The matrix that sums, multiples, products and powers of matrices are; the node itself where they fit no rule."""
    value = _matrix_value(node)
    return node if value is None else value


def _matrix_value(node: Node) -> Node | None:
    args = node.args
    if node.kind is Kind.POW and args[0].kind is Kind.GROUP and args[1] == symbol("T"):  # (1, 2)^T
        return Node(Kind.MATRIX, args[0].args, (len(args[0].args), 1))
    if not any(part.kind is Kind.MATRIX for part in node.walk()) or node.kind is Kind.MATRIX:
        return node
    match node.kind:
        case Kind.NEG | Kind.DIV | Kind.FRAC:
            matrix = _matrix_value(args[0])
            if matrix is None or matrix.kind is not Kind.MATRIX or any(p.kind is Kind.MATRIX for p in args[1:]):
                return None
            return matrix.with_args(tuple(node.with_args((entry, *args[1:])) for entry in matrix.args))
        case Kind.ADD:
            terms = [term for arg in args if (term := _matrix_value(arg)) is not None and term.kind is Kind.MATRIX]
            if len(terms) < len(args) or len({term.value for term in terms}) > 1:
                return None
            sums = zip(*(term.args for term in terms), strict=True)
            return terms[0].with_args(tuple(Node(Kind.ADD, entries) for entries in sums))
        case Kind.MUL:
            factors = [_matrix_value(arg) for arg in args]
        case Kind.POW if args[1].kind is Kind.NUMBER and args[1].value in (2, 3, 4):
            factors = [_matrix_value(args[0])] * int(args[1].value)
        case Kind.POW if args[1] == symbol("T") and args[0].kind is Kind.MATRIX:
            rows, columns = args[0].value
            entries = tuple(args[0].args[r * columns + c] for c in range(columns) for r in range(rows))
            return Node(Kind.MATRIX, entries, (columns, rows))
        case _:
            return None
    product, scalars = None, []
    for factor in factors[: _MOST_FACTORS + 1]:
        if factor is None:
            return None
        if factor.kind is not Kind.MATRIX:
            scalars.append(factor)
        else:
            product = factor if product is None else _product(product, factor)
            if product is None:
                return None
    if product is None or len(factors) > _MOST_FACTORS:
        return None
    scaled = tuple(Node(Kind.MUL, (*scalars, entry)) for entry in product.args) if scalars else product.args
    return product.with_args(scaled)


def _product(first: Node, second: Node) -> Node | None:
    (rows, inner), (other_inner, columns) = first.value, second.value
    if inner != other_inner or rows * columns > _LARGEST_MATRIX:
        return None
    entries: list[Node] = []
    for row in range(rows):
        for column in range(columns):
            pairs = [(first.args[row * inner + k], second.args[k * columns + column]) for k in range(inner)]
            entries.append(Node(Kind.ADD, tuple(Node(Kind.MUL, pair) for pair in pairs)))
    return Node(Kind.MATRIX, tuple(entries), (rows, columns)) if rows * columns > 1 else entries[0]
