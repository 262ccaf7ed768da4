"""Units of measure, money and counted things as a scale and a product of base dimensions.

`5 cm` and `0.05 m` are the same quantity, `5 cm` and `5 m` are not; a word that is no known unit is its own dimension,
so `5 apples` differs from `5 pears`. Words that only say what is counted in ("units", "ways") are no unit at all.
"""

import dataclasses
from fractions import Fraction

from .expression import names


@dataclasses.dataclass(frozen=True)
class Unit:
    """`scale` base units, each dimension to its power, in alphabetical order."""

    scale: Fraction
    dimensions: tuple[tuple[str, int], ...]

    def times(self, other: "Unit", power: int = 1) -> "Unit":
        """This unit times `other` to the `power`."""
        powers = dict(self.dimensions)
        for name, exponent in other.dimensions:
            powers[name] = powers.get(name, 0) + exponent * power
        kept = tuple(sorted((name, exponent) for name, exponent in powers.items() if exponent))
        return Unit(self.scale * other.scale**power, kept)


NO_UNIT = Unit(Fraction(1), ())


def _table() -> dict[str, Unit]:
    rows: dict[str, tuple[str, int | Fraction]] = {
        "m meter metre meters metres 米": ("metre", 1),
        "km kilometer kilometre kilometers kilometres 千米 公里": ("metre", 1000),
        "dm decimeter decimetre decimeters decimetres 分米": ("metre", Fraction(1, 10)),
        "cm centimeter centimetre centimeters centimetres 厘米": ("metre", Fraction(1, 100)),
        "mm millimeter millimetre millimeters millimetres 毫米": ("metre", Fraction(1, 1000)),
        "um micrometer micron microns": ("metre", Fraction(1, 10**6)),
        "nm nanometer nanometers": ("metre", Fraction(1, 10**9)),
        "pm picometer picometers": ("metre", Fraction(1, 10**12)),
        "angstrom angstroms": ("metre", Fraction(1, 10**10)),
        "in inch inches": ("metre", Fraction(254, 10000)),
        "ft foot feet 英尺": ("metre", Fraction(3048, 10000)),
        "yd yard yards": ("metre", Fraction(9144, 10000)),
        "mi mile miles 英里": ("metre", Fraction(1609344, 1000)),
        "s sec secs second seconds 秒 秒钟": ("second", 1),
        "ms millisecond milliseconds": ("second", Fraction(1, 1000)),
        "min mins minute minutes 分钟 分": ("second", 60),
        "h hr hrs hour hours 小时 时": ("second", 3600),
        "day days 天 日": ("second", 86400),
        "week weeks wk wks 周 星期": ("second", 7 * 86400),
        "month months 个月 月": ("month", 1),
        "year years yr yrs 年 岁": ("month", 12),
        "g gram grams gm gms 克": ("gram", 1),
        "kg kilogram kilograms kgs 千克 公斤": ("gram", 1000),
        "mg milligram milligrams 毫克": ("gram", Fraction(1, 1000)),
        "ton tons tonne tonnes 吨": ("gram", 10**6),
        "lb lbs pound pounds": ("gram", Fraction(45359237, 10**5)),
        "oz ounce ounces": ("gram", Fraction(45359237, 16 * 10**5)),
        "dollar dollars usd $ buck bucks 美元": ("dollar", 1),
        "cent cents ¢": ("dollar", Fraction(1, 100)),
        "euro euros eur 欧元": ("euro", 1),
        "gbp sterling 英镑": ("pound sterling", 1),
        "yuan rmb cny yen jpy 元 块 人民币": ("yuan", 1),
        "rupee rupees rs inr": ("rupee", 1),
        "deg degree degrees 度": ("degree", 1),
        "rad radian radians 弧度": ("radian", 1),
        "kelvin": ("kelvin", 1),
        "celsius": ("celsius", 1),
        "fahrenheit": ("fahrenheit", 1),
        "hz hertz": ("per second", 1),
        "mol mole moles": ("mole", 1),
        "ohm ohms": ("ohm", 1),
        "v volt volts": ("volt", 1),
        "amp amps ampere amperes": ("ampere", 1),
        "bit bits": ("bit", 1),
        "byte bytes": ("bit", 8),
        "person people persons 人": ("person", 1),
        "child children": ("child", 1),
        "man men": ("man", 1),
        "woman women": ("woman", 1),
        "percent 百分": ("percent", 1),
    }  # fmt: skip
    table = {}
    for spellings, (dimension, scale) in rows.items():
        for name in spellings.split():
            table[name] = Unit(Fraction(scale), ((dimension, 1),))
    metre, second = table["m"], table["s"]
    kilogram = table["kg"]
    litre = Unit(Fraction(1, 1000), (("metre", 3),))
    newton = kilogram.times(metre).times(second, -2)
    joule, square_foot = newton.times(metre), table["ft"].times(table["ft"])
    derived = {
        "l liter liters litre litres 升": litre,
        "ml milliliter milliliters millilitre millilitres 毫升": Unit(Fraction(1, 10**6), (("metre", 3),)),
        "cc": Unit(Fraction(1, 10**6), (("metre", 3),)),
        "gallon gallons gal": Unit(Fraction(3785411784, 10**12), (("metre", 3),)),
        "acre acres": Unit(square_foot.scale * 43560, square_foot.dimensions),
        "hectare hectares": Unit(Fraction(10**4), (("metre", 2),)),
        "mph": table["mi"].times(table["h"], -1),
        "kmh kph": table["km"].times(table["h"], -1),
        "n newton newtons": newton,
        "j joule joules": joule,
        "kj": Unit(joule.scale * 1000, joule.dimensions),
        "erg ergs": Unit(joule.scale / 10**7, joule.dimensions),
        "w watt watts": joule.times(second, -1),
        "pa pascal pascals": newton.times(metre, -2),
        "ev": Unit(joule.scale * Fraction("1.602176634e-19"), joule.dimensions),
    }
    for spellings, unit in derived.items():
        for name in spellings.split():
            table[name] = unit
    return table


UNITS = _table()
COUNTED_IN = frozenset(
    names(
        "unit units way ways value values digits distinct different possible total times time integers "
        "solutions solution the of a an in each old long tall high wide deep away apart altogether left "
        "remaining approximately about exactly only more right such all 个 种 次 条 只 名 位 组 对 道 颗"
    )
)
"""Words that say nothing about the dimension of a number."""
POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
"""Words that square or cube the unit beside them."""
MULTIPLIERS = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
"""Words after a number that multiply it."""
SINGLE_LETTERS = frozenset("msgLNJWVKhA")
"""Letters that may be a unit when a plain number stands before them."""


def word_unit(word: str) -> Unit:
    """The unit a word names; an unknown word is a dimension of its own, plural and case ignored."""
    if word in UNITS:
        return UNITS[word]
    lowered = word.lower().rstrip(".")
    if lowered in UNITS:
        return UNITS[lowered]
    if lowered in COUNTED_IN or not lowered:
        return NO_UNIT
    for ending, replacement in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("sses", "ss"), ("s", "")):
        if lowered.endswith(ending) and len(lowered) > len(ending) + 1 and not lowered.endswith("ss"):
            lowered = lowered[: -len(ending)] + replacement
            break
    return UNITS.get(lowered) or Unit(Fraction(1), ((lowered, 1),))


def is_unit_word(word: str) -> bool:
    """Whether a bare word is the name of a known unit, or of what is counted."""
    lowered = word.lower()
    return word in UNITS or lowered in UNITS or lowered in COUNTED_IN or lowered in POWERS or lowered in MULTIPLIERS
