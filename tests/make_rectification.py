"""Write rectification.csv: RAdam's schedule to 25 digits, from its definition in 120-digit arithmetic.

beta2 is taken as the exact value of its float64. Columns: beta2, t, one_minus_beta2_pow_t, rho_inf, rho_t,
r_t (empty where rho_t <= 5). Run: python make_rectification.py > rectification.csv  (needs mpmath)
"""

import random

import mpmath as mp

mp.mp.dps = 120
BETA2 = [
    "0.0",
    "0.1",
    "0.5",
    "0.6",
    "0.65",
    "0.7",
    "0.9",
    "0.95",
    "0.98",
    "0.99",
    "0.995",
    "0.999",
    "0.9995",
    "0.9999",
    "0.99999",
    "0.999999",
    "0.9999999",
    "0.999999999",
    "0.999999999999",
    "0.9999999999999999",
]
rng = random.Random(1908)
BETA2 += [repr(1 - 10 ** -rng.uniform(0.05, 15.5)) for _ in range(20)]
T = [
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    10,
    13,
    20,
    50,
    100,
    333,
    1000,
    4096,
    10_000,
    123_457,
    10**6,
    16_777_217,
    10**8,
    2**31 + 1,
    10**10,
    10**12,
    2**53 + 1,
    2**62,
]


def text(x):
    return mp.nstr(x, 25, min_fixed=-3, max_fixed=3)


print("beta2,t,one_minus_beta2_pow_t,rho_inf,rho_t,r_t")
for b in BETA2:
    beta2 = mp.mpf(float(b))
    for t in T:
        power = beta2**t
        rest = 1 - power
        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2 * t * power / rest
        r = ""
        if rho > 5:
            r = text(mp.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)))
        print(f"{b},{t},{text(rest)},{text(rho_inf)},{text(rho)},{r}")
