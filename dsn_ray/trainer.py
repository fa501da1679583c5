"""Ray Train with fewer processes.

For each training Ray starts processes for Train's controller, for data sets that are handed to
Train (here are none), and for a cleaner that asks each second whether the controller lives, to free
its workers' CPUs should it die. Within a trial of Ray Tune there are also one for the trial and one
for the queue by which the controller tells it of results. A trial only waits for the others, so it
is the controller itself, and its process may go on with the next trial; the driver, which hears
when a trial dies, frees the CPUs.
"""

import asyncio
import os
import uuid
from collections.abc import Iterable
from typing import Any

import ray.train
from ray import PlacementGroupID, tune
from ray.train._internal.session import get_session
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.controller.state import AbortedState
from ray.train.v2._internal.execution.worker_group import WorkerGroup, WorkerGroupContext
from ray.train.v2._internal.execution.worker_group.placement_group_handle import (
    DefaultPlacementGroupHandle,
    PlacementGroupHandle,
)
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.tune.experiment import Trial
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup


class Trainer(DataParallelTrainer):
    """Trains without a process for data sets."""

    _unwanted: tuple[type, ...] = (DatasetsCallback,)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [one for one in callbacks if not isinstance(one, self._unwanted)]


class TrialTrainer(Trainer):
    """Trains with its controller in this process, which has to be a trial's.

    Ray 2.60 has no switch for it, so private methods are replaced. In a Ray without these the
    imports above fail, or it starts its own controller and `TellTune` reports from there to nobody:
    the tests would say so.
    """

    _unwanted = (*Trainer._unwanted, PlacementGroupCleanerCallback)

    def _initialize_and_run_controller(self, **arguments: Any) -> ray.train.Result:
        controller = _Controller(**arguments)
        try:
            asyncio.run(controller.run())
        except SystemExit:  # Tune has stopped the trial
            controller.stop()
            raise
        return controller.get_result()


class _Workers(WorkerGroup):
    """Their placement group is named after the trial, by which the driver finds it."""

    def _start(self) -> None:
        try:
            super()._start()
        except Exception:
            if self.has_started():  # Ray forgets such a group, and waits for its CPUs
                self.get_worker_group_state().shutdown()
                self._clear_state()
            raise

    def _create_placement_group(
        self, scaling_config: Any, worker_group_context: WorkerGroupContext
    ) -> PlacementGroupHandle:
        asked = worker_group_context
        group = placement_group(
            [asked.resources_per_worker] * asked.num_workers,
            strategy=asked.placement_strategy,
            bundle_label_selector=asked.label_selector,
            name=f"{tune.get_context().get_trial_id()}:{uuid.uuid4().hex}",
        )
        return DefaultPlacementGroupHandle(group)


class _Controller(TrainController):
    worker_group_cls = _Workers

    def stop(self) -> None:
        """Ends the workers and gives back what was asked for; its process goes on."""
        self._controller_callback_manager.invoke_best_effort("before_controller_abort")
        if (workers := self.get_worker_group()) is not None:
            group = workers.get_worker_group_state().placement_group_handle
            try:
                workers.abort()
            finally:
                group.shutdown()
        self._set_state(AbortedState())


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


class ReleaseWorkers(tune.Callback):
    """Gives back what a trial's workers had, however the trial ends."""

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Has the trial's process end its training before whatever Tune asks of it next.

        Where a scheduler stopped the trial and the process is kept for another one, Tune would say
        so only then, and the workers would go on until somebody wants to train there.
        """
        if (process := trial.temporary_state.ray_actor) is not None:
            process.execute.remote(_end_training)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Removes the placement groups that dead processes have left."""
        _remove_groups([trial, *(one for one in trials if one.is_finished())])

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Removes those whose processes did not come to it."""
        _remove_groups(trials)


def _remove_groups(trials: Iterable[Trial]) -> None:
    ended = {trial.trial_id for trial in trials}
    for group in placement_group_table().values():
        if group["state"] != "REMOVED" and group["name"].partition(":")[0] in ended:
            number = PlacementGroupID.from_hex(group["placement_group_id"])
            remove_placement_group(PlacementGroup(number))


def _end_training(_: Any) -> None:
    """Has the report that a trial waits in raise SystemExit, and waits for the training's end.

    A process that does not come to it within a minute ends itself, so that Tune hears of it.
    """
    if (session := get_session()) is not None:
        session.finish(timeout=60)
        if session.training_thread.is_alive():
            os._exit(1)
