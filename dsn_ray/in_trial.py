"""Ray Train within a Ray Tune trial: one process where Ray would start three.

Ray starts a process for Train's controller and another for the queue by which it tells the trial of
results. A trial only waits for both, so it does their work itself.
"""

import asyncio
from typing import Any

import ray.train
from ray import tune
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class TrialTrainer(DataParallelTrainer):
    """Trains with its controller in this process, which has to be a trial's.

    Ray 2.60 has no switch for it, so a private method is replaced; a Ray without that method starts
    its own controller, and `TellTune` reports from there to nobody: the tests would say so.
    """

    def _initialize_and_run_controller(self, **arguments: Any) -> ray.train.Result:
        controller = TrainController(**arguments)
        asyncio.run(controller.run())
        return controller.get_result()


class TellTune(ray.train.UserCallback):
    """Passes what the first worker reports on to Tune."""

    def after_report(
        self,
        run_context: Any,
        metrics: list[dict[str, Any]],
        checkpoint: ray.train.Checkpoint | None,
    ) -> None:
        """Waits until Tune has decided whether the trial goes on."""
        tune.report(metrics[0])
