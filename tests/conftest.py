"""One thread in each process of the suite: two run at once (``pytest -n 2``), and small work is slower with more."""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
