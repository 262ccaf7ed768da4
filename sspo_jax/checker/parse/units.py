"""Units of measure, money and counted things as a scale and a product of base dimensions.

`5 cm` and `0.05 m` are the same quantity, `5 cm` and `5 m` are not. The table is closed: names of units and their
symbols, the latter with SI prefixes and in their own case. Beside it stand counted nouns: a plural that is no word of
mathematics is a dimension of its own, so `5 apples` differs from `5 pears`. Words that only say what is counted in
("units", "ways") have no dimension.
"""

import dataclasses
from fractions import Fraction

from ..expression import name_set, names


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
_F = Fraction
_BASE: dict[str, tuple[str, int | Fraction]] = {  # names in any case: dimension, scale
    "meter metre meters metres 米": ("metre", 1),
    "kilometer kilometre kilometers kilometres 千米 公里": ("metre", 1000),
    "decimeter decimetre decimeters decimetres 分米": ("metre", _F(1, 10)),
    "centimeter centimetre centimeters centimetres 厘米": ("metre", _F(1, 100)),
    "millimeter millimetre millimeters millimetres 毫米": ("metre", _F(1, 1000)),
    "um micrometer micrometers micrometre micrometres micron microns": ("metre", _F(1, 10**6)),
    "nanometer nanometers nanometre nanometres": ("metre", _F(1, 10**9)),
    "picometer picometers": ("metre", _F(1, 10**12)),
    "angstrom angstroms": ("metre", _F(1, 10**10)),
    "in inch inches": ("metre", _F(254, 10000)), "ft foot feet 英尺": ("metre", _F(3048, 10000)),
    "yd yds yard yards": ("metre", _F(9144, 10000)), "mi mile miles 英里": ("metre", _F(1609344, 1000)),
    "ly lightyear lightyears": ("light year", 1), "pc parsec parsecs": ("parsec", 1), "au": ("astronomical unit", 1),
    "sec secs second seconds 秒 秒钟": ("second", 1), "millisecond milliseconds": ("second", _F(1, 1000)),
    "microsecond microseconds": ("second", _F(1, 10**6)), "nanosecond nanoseconds": ("second", _F(1, 10**9)),
    "min mins minute minutes 分钟 分": ("second", 60), "hr hrs hour hours 小时 时": ("second", 3600),
    "day days 天 日": ("second", 86400), "week weeks wk wks 周 星期": ("second", 7 * 86400),
    "month months 个月 月": ("month", 1), "year years yr yrs 年 岁": ("month", 12),
    "decade decades": ("month", 120), "century centuries": ("month", 1200),
    "gram grams gm gms 克": ("gram", 1), "kilogram kilograms kgs 千克 公斤": ("gram", 1000),
    "milligram milligrams 毫克": ("gram", _F(1, 1000)), "ton tons tonne tonnes 吨": ("gram", 10**6),
    "lb lbs pound pounds": ("gram", _F(45359237, 10**5)), "oz ounce ounces": ("gram", _F(45359237, 16 * 10**5)),
    "dollar dollars usd $ buck bucks 美元": ("dollar", 1), "cent cents ¢": ("dollar", _F(1, 100)),
    "euro euros eur 欧元": ("euro", 1), "gbp sterling 英镑": ("pound sterling", 1),
    "yuan rmb cny yen jpy 元 块 人民币": ("yuan", 1), "rupee rupees rs inr": ("rupee", 1),
    "baht": ("baht", 1), "peso pesos": ("peso", 1), "won": ("won", 1),
    "rp rupiah": ("rupiah", 1), "ruble rubles": ("ruble", 1),
    "deg degree degrees 度": ("degree", 1), "rad radian radians 弧度": ("radian", 1),
    "arcmin arcminute arcminutes": ("degree", _F(1, 60)), "arcsec arcsecond arcseconds": ("degree", _F(1, 3600)),
    "kelvin kelvins": ("kelvin", 1), "celsius": ("celsius", 1), "fahrenheit": ("fahrenheit", 1),
    "hertz": ("per second", 1), "rpm": ("revolution per minute", 1), "mole moles": ("mole", 1),
    "ohm ohms": ("ohm", 1), "volt volts": ("volt", 1), "amp amps ampere amperes": ("ampere", 1),
    "coulomb coulombs": ("coulomb", 1), "farad farads": ("farad", 1), "henry henries henrys": ("henry", 1),
    "tesla teslas": ("tesla", 1), "weber webers": ("weber", 1), "gauss": ("gauss", 1), "molar": ("molar", 1),
    "lumen lumens lm": ("lumen", 1), "lux lx": ("lux", 1), "candela cd": ("candela", 1),
    "siemens": ("siemens", 1), "becquerel becquerels": ("becquerel", 1), "decibel decibels": ("decibel", 1),
    "dyne dynes dyn": ("dyne", 1), "poise": ("poise", 1), "calorie calories cal": ("calorie", 1),
    "atm atmosphere atmospheres": ("atmosphere", 1), "torr": ("torr", 1), "mmhg": ("torr", 1), "psi": ("psi", 1),
    "amu dalton daltons": ("dalton", 1), "cup cups": ("cup", 1), "knot knots": ("knot", 1), "btu": ("btu", 1),
    "teaspoon teaspoons tsp": ("teaspoon", 1), "tablespoon tablespoons tbsp": ("tablespoon", 1),
    "bit bits": ("bit", 1), "byte bytes": ("bit", 8), "horsepower hp": ("horsepower", 1),
    "person people persons 人": ("person", 1), "child children": ("child", 1), "man men": ("man", 1),
    "woman women": ("woman", 1), "percent 百分": ("percent", 1),
}  # fmt: skip
_PREFIXES = {"k": 3, "M": 6, "G": 9, "T": 12, "c": -2, "d": -1, "m": -3, "u": -6, "n": -9, "p": -12, "f": -15}
_SYMBOLS = {  # in their own case: the name it stands for, the prefixes that it is used with
    "m": ("meter", "k d c m u n p f"), "s": ("sec", "m u n p f"), "g": ("gram", "k m u n"), "L": ("liter", "m u d c"),
    "l": ("liter", "m u d c"), "h": ("hour", ""), "J": ("joule", "k M G m"), "K": ("kelvin", "m u"),
    "N": ("newton", "k M m u"), "W": ("watt", "k M G T m u n"), "V": ("volt", "k M m u"), "A": ("amp", "k m u n"),
    "C": ("coulomb", "m u n p"), "F": ("farad", "m u n p"), "H": ("henry", "m u n"), "T": ("tesla", "m u n"),
    "Pa": ("pascal", "k M G m h"), "Hz": ("hertz", "k M G T m"), "eV": ("electronvolt", "k M G T m"),
    "mol": ("mole", "k m u n"), "Wb": ("weber", "m"), "cal": ("calorie", "k"), "bar": ("bar", "m k"),
    "pc": ("parsec", "k M G"), "rad": ("radian", "m u"), "sr": ("steradian", ""), "Bq": ("becquerel", "k M G"),
    "M": ("molar", "m u n"), "dB": ("decibel", ""), "kWh": ("kwh", ""), "B": ("byte", "k M G T"), "G": ("gauss", ""),
    "ohm": ("ohm", "k M G m"),
}  # fmt: skip


def _table() -> dict[str, Unit]:
    table: dict[str, Unit] = {}
    for spellings, (dimension, scale) in _BASE.items():
        for name in names(spellings):
            table[name] = Unit(Fraction(scale), ((dimension, 1),))
    metre, second, kilogram = table["meter"], table["sec"], table["kilogram"]
    litre = Unit(Fraction(1, 1000), (("metre", 3),))
    newton = kilogram.times(metre).times(second, -2)
    joule, square_foot = newton.times(metre), table["ft"].times(table["ft"])

    def scaled(unit: Unit, factor: int | str | Fraction) -> Unit:
        return Unit(unit.scale * Fraction(factor), unit.dimensions)

    derived = {
        "liter liters litre litres 升": litre,
        "milliliter milliliters millilitre millilitres cc 毫升": scaled(litre, Fraction(1, 1000)),
        "gallon gallons gal": scaled(litre, Fraction(3785411784, 10**9)),
        "quart quarts qt": scaled(litre, Fraction(3785411784, 4 * 10**9)),
        "pint pints pt": scaled(litre, Fraction(3785411784, 8 * 10**9)),
        "acre acres": scaled(square_foot, 43560), "hectare hectares ha": Unit(Fraction(10**4), (("metre", 2),)),
        "mph": table["mi"].times(table["hr"], -1), "kmh kph": scaled(metre, 1000).times(table["hr"], -1),
        "newton newtons": newton, "joule joules": joule, "kilojoule kilojoules": scaled(joule, 1000),
        "erg ergs": scaled(joule, Fraction(1, 10**7)), "watt watts": joule.times(second, -1),
        "kilowatt kilowatts": scaled(joule, 1000).times(second, -1), "pascal pascals": newton.times(metre, -2),
        "electronvolt electronvolts": scaled(joule, "1.602176634e-19"),
        "kwh": scaled(joule, 3_600_000),
    }  # fmt: skip
    for spellings, unit in derived.items():
        for name in names(spellings):
            table[name] = unit
    for spelling, (name, prefixes) in _SYMBOLS.items():
        unit = table.get(name) or Unit(Fraction(1), ((name, 1),))
        table[spelling] = unit
        for prefix in names(prefixes):
            table[prefix + spelling] = scaled(unit, Fraction(10) ** _PREFIXES.get(prefix, 2))
    return table


UNITS = _table()
COUNTED_IN = name_set(
    "unit units way ways value values digit digits total times integer integers number numbers solution solutions "
    "element elements 个 种 次 条 只 名 位 组 对 道 颗 件 本 页 枚 张 辆 棵 支 块 盒 朵 座 台 份 层 间 场 句 篇 篮"
)
"""Words that say what a number counts without giving it a dimension."""
FILLERS = name_set(
    "of the in different distinct possible time old long tall high wide deep away apart altogether left remaining "
    "exactly only more right such all total each overall together ago later now extra additional "
    "up down upward upwards downward downwards left north south east west northeast northwest southeast southwest "
    "due clockwise counterclockwise"
)
"""Words beside a unit or what is counted that change nothing."""
PER = name_set("per every")
POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3, "平方": 2, "立方": 3}
"""Words that square or cube the unit beside them."""
MULTIPLIERS = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "百万": 10**6, "千万": 10**7, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8,
    "halves": _F(1, 2), "thirds": _F(1, 3), "quarters": _F(1, 4), "fourths": _F(1, 4), "fifths": _F(1, 5),
    "sixths": _F(1, 6), "sevenths": _F(1, 7), "eighths": _F(1, 8), "ninths": _F(1, 9), "tenths": _F(1, 10),
    "tens": 10, "hundreds": 100, "thousands": 1000, "scores": 20, "hundredths": _F(1, 100), "thousandths": _F(1, 1000),
}  # fmt: skip
"""Words after a number that multiply it."""
ABBREVIATIONS = name_set(
    "km dm cm mm nm pm kg mg ug kN kJ kW kV kPa kHz MHz GHz Hz Pa eV keV MeV GeV mol mmol mL ml dL ft yd "
    "mi lb lbs oz gal hr hrs min mins sec secs mph kmh kph rpm ms ns us cc ha rad mV mA mW kWh cal kcal atm in gm "
    "yr yrs"
)
"""Unit symbols of two letters and more that also are products of variables: `2kg` is two kilograms or 2 k g."""
LETTERS = name_set("m s g h L l J K N W V A C F H T M")
"""Unit symbols of one letter; they need a number before them, and variables a letter."""
_NO_NOUNS = name_set(
    "is was has does as this thus its plus minus equals times less unless always perhaps sometimes besides "
    "yes us his ours theirs various across versus pus bis cos sus guess means makes gives gets goes says happens "
    "exists holds works fails equals exceeds remains becomes divides shows tis others"
)
_IRREGULAR_NOUNS = name_set("feet teeth mice geese fish sheep deer dice oxen cattle salmon staff yen change")
_NO_UNIT_WORDS = name_set(
    "is are was were be been not no nor non maybe perhaps possibly probably and or if when than less fewer least "
    "most greater larger smaller bigger at about over under above below choose mod modulo to from by with without "
    "factorial pi root plus minus negative positive infinity squared cubed power powers maximum minimum max "
    "min but wrong false true correct incorrect cannot never none neither either it that this i you we he she they "
    "halves thirds half third one two three four five six seven eight nine ten eleven twelve zero hundredth "
    "degree? sqrt multiples multiple divides factors mean between up down almost nearly approximately "
    "around roughly except instead rather actually wait hmm sorry think believe guess"
)
"""Words that make what stands before them something else than a counted number."""


def known_unit(word: str) -> Unit | None:
    """The unit that a word or symbol of the table names: symbols in their own case, names in any."""
    unit = UNITS.get(word)
    if unit is None and (len(word) > 3 or word.lower() in _ANY_CASE):
        unit = UNITS.get(word.lower())
    return unit


_ANY_CASE = name_set(
    "in ft lb lbs oz mi yd min hr hrs sec day man men usd eur gbp cny rmb jpy inr rs rp yen yr mph kph cm km mm kg kmh"
)


def counted_noun(word: str) -> Unit | None:
    """The dimension of a plural that is counted; singular and plural are one."""
    lowered = word.lower()
    if lowered in _IRREGULAR_NOUNS:
        return Unit(Fraction(1), ((lowered, 1),))
    if len(lowered) < 4 or not lowered.endswith("s") or lowered.endswith("ss") or not lowered.isascii():
        return None
    if lowered in _NO_NOUNS or lowered in _NO_UNIT_WORDS or not lowered.isalpha():
        return None
    return Unit(Fraction(1), ((singular(lowered), 1),))


def singular(noun: str) -> str:
    """A plural without its ending."""
    for ending, replacement in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("sses", "ss"), ("s", "")):
        if noun.endswith(ending) and len(noun) > len(ending) + 1:
            return noun[: -len(ending)] + replacement
    return noun


def is_describing(word: str) -> bool:
    """Whether an unknown word may stand before a counted noun: `7 red balls`."""
    lowered = word.lower()
    return lowered.isascii() and lowered.isalpha() and len(lowered) > 1 and lowered not in _NO_UNIT_WORDS | _NO_NOUNS


_WORDS_OF_UNITS = COUNTED_IN | FILLERS | PER | {*POWERS, *MULTIPLIERS, "each", "a", "an"}


def is_unit_word(word: str) -> bool:
    """Whether a bare word is the name of a known unit, or of what is counted."""
    lowered = word.lower()
    return known_unit(word) is not None or lowered in _WORDS_OF_UNITS
