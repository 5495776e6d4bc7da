"""Task suites of other projects as task-keyed batched environments; each needs an extra of this library.

.. code-block:: python

    from peach_trl.envs.suites import meta_world

    env = meta_world(num_envs=40, benchmark="ML1", task_name="reach-v3", split="train", seed=0)
"""

from peach_trl.envs.suites.metaworld import meta_world, meta_world_library
from peach_trl.envs.suites.ogbench import ogbench_maze, ogbench_maze_library
from peach_trl.envs.suites.robotics import robotics_maze, robotics_maze_library

__all__ = [
    "meta_world",
    "meta_world_library",
    "ogbench_maze",
    "ogbench_maze_library",
    "robotics_maze",
    "robotics_maze_library",
]
