"""Numbers of the polynomials by which primitives compute elementary functions, in float64: one list for every room.

Taylor series end where the next term is below the last bit. `ERFC` is a Chebyshev interpolation, of error 8.4e-20 (made
with mpmath.chebyfit).
"""

import math

LN2_HIGH, LN2_LOW = 0.6931471805598903, 5.497923018708371e-14  # 42 bits, so that products with exponents are exact
LN2, LOG2_E = 0.6931471805599453, 1.4426950408889634
EXP = tuple(1 / math.factorial(k) for k in range(1, 15))  # (exp(r) - 1) / r for |r| <= ln(2) / 2, in powers of r
ATANH = tuple(2 / (2 * k + 1) for k in range(1, 12))  # 2 atanh(s) = 2 s + s z (...), z = s * s, |s| <= 0.1716
TWO_OVER_ROOT_PI = 1.1283791670955126  # 2 / sqrt(pi)
ERF = tuple(
    (-1) ** k * TWO_OVER_ROOT_PI / (math.factorial(k) * (2 * k + 1)) for k in range(19)
)  # erf(x)/x in x**2, x<=1
ERFC_CENTRE = 2.5  # t = (x - c) / (x + c)
ERFC = (  # erfc(x) * exp(x * x) for 1 <= x <= 6, in powers of t
    0.2108063640611436,
    -0.37173673394897333,
    0.2517131932174493,
    -0.1250330523788293,
    0.03992253907558476,
    -0.003993701165858238,
    -0.002642365964297403,
    0.0008759154501337608,
    0.00022838037890860082,
    -0.0001288771713312957,
    -3.418223813331523e-05,
    1.8614457552080007e-05,
    7.552594323139502e-06,
    -2.2981102519735954e-06,
    -1.8020038653448608e-06,
    7.773331597404786e-08,
    3.441892461295565e-07,
    6.961191560229168e-08,
)
