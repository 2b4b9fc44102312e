"""Training: the loop, its losses, schedules, statistics and checkpoints.

The package is also its one public function: `umx_model.train(profile, data, output)` calls
`umx_model.train.trainer.train`, whichever of its modules has been imported before.
"""

import sys
from types import ModuleType
from typing import Any


class _TrainPackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from umx_model.train.trainer import train

        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _TrainPackage
