"""PEARL: a flat policy with a context variable z (Rakelly et al. 2019, arXiv 1903.08254).

    python recipes/pearl.py

Algorithm 1 at depth 1: the loop stands in recipes/source.py. Values and their meaning: configs/pearl.yaml.
Results: the run's folder under runs/.
"""

from __future__ import annotations

from source import meta_train  # beside this file

from peach_trl.experiment import SourceConfig
from peach_trl.utils.cli import recipe

main = recipe(SourceConfig, config_name="pearl")(meta_train)

if __name__ == "__main__":
    main()
