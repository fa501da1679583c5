"""Ray Train with as few processes as it needs.

For each training Ray starts processes for Train's controller, for data sets that are handed to
Train (here are none), and for a cleaner that frees the workers' CPUs should the controller die;
within a trial of Ray Tune also one for the trial, and one for the queue by which the controller
tells it of results. A trial only waits for the others, so it does their work itself, and its
process and cleaner may go on with the next trial.
"""

import asyncio
from typing import Any

import ray.train
from ray import tune
from ray.train._internal.session import get_session
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.controller.state import AbortedState
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.tune.experiment import Trial


class Trainer(DataParallelTrainer):
    """Trains without a process for data sets."""

    _replaced: tuple[type, ...] = (DatasetsCallback,)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [one for one in callbacks if not isinstance(one, self._replaced)]


class TrialTrainer(Trainer):
    """Trains with its controller in this process, which has to be a trial's.

    Ray 2.60 has no switch for it, so private methods are replaced; a Ray without these starts its
    own controller, and `TellTune` reports from there to nobody: the tests would say so.
    """

    _replaced = (*Trainer._replaced, PlacementGroupCleanerCallback)

    def _initialize_and_run_controller(self, **arguments: Any) -> ray.train.Result:
        controller = _Controller(**arguments)
        try:
            asyncio.run(controller.run())
        except SystemExit:  # Tune has stopped the trial
            controller.stop()
            raise
        return controller.get_result()

    def _create_default_callbacks(self) -> list[Any]:
        return [_CLEANER, *super()._create_default_callbacks()]


class _Controller(TrainController):
    def stop(self) -> None:
        """Ends the workers; its process goes on."""
        if (workers := self.get_worker_group()) is not None:
            workers.abort()
        self._set_state(AbortedState())


class _Cleaner(PlacementGroupCleanerCallback):
    """Frees the workers' CPUs should this process die; is started once."""

    _is_there = False

    def after_controller_start(self, train_run_context: Any) -> None:
        if not self._is_there:
            super().after_controller_start(train_run_context)
            self._is_there = True

    async def before_controller_shutdown(self) -> None:
        """Goes on."""


_CLEANER = _Cleaner()


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


class EndTrainings(tune.Callback):
    """Ends the training of a trial that a scheduler stopped.

    Tune keeps the trial's process for the next one, and would tell it only then: until somebody
    wants to train there, the workers would go on.
    """

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Tells the trial's process, which does this before whatever Tune asks of it next."""
        if (process := trial.temporary_state.ray_actor) is not None:
            process.execute.remote(_end_training)


def _end_training(_: Any) -> None:
    """Has a trial's next report raise SystemExit, and waits until the training has ended."""
    if (session := get_session()) is not None:
        session.finish(timeout=60)
