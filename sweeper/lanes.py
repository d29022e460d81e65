"""Lanes under way: as many Ray Train runs as trials are left for and the cluster grants, each in a thread."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import RayTrainError, UserExceptionWithTraceback
from ray.util import placement_group_table, remove_placement_group

from cluster.broker import HEARTBEAT_S, Share
from cluster.connect import nodes
from cluster.resources import Shape
from jobs.clock import EVALUATE
from jobs.process_group import LaneConfig, serve
from jobs.record import TrialFolder
from jobs.spec import TrialSpec
from jobs.zero import micro_batch_size
from sweeper.board import Place, State
from sweeper.fitting import fewer_answers, fitting, is_out_of_memory, smaller
from sweeper.gpu_memory import larger_share, placed, remember
from sweeper.gpu_share import Measure, in_words, parts_of
from sweeper.grouping import regrouped
from sweeper.lane_policy import Lane, changes, lanes_wanted, why_waiting
from sweeper.lane_trainer import LaneTrainer

GIB = 1 << 30
START_ATTEMPTS = 10  # of a lane whose workers cannot be placed; Ray Train's default is without end
FRUITLESS = 3  # lanes in a row that failed before their first trial: then none will come up
# what gloo and NCCL raise in a worker whose peer is gone; Ray may notice that later
PEER_GONE = ("gloo", "NCCL", "Connection closed", "Connection reset", "connection was closed")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # Ray's, of a terminal
SOON_S = 5.0  # a lane that is not up by then may be waiting for room: say so
STOP_S = 600.0  # for trials to reach their next row and write a checkpoint; a second Ctrl-C does not wait


class LanePool:
    """The lanes of one sweep. A lane that dies tells the board and is replaced while trials are left.

    trials:   key -> trial, as they are to be run; places: what each of them occupies
    most:     trials at once, over all shapes
    requests: names trials that somebody wants stopped, each once
    say:      prints a line for people
    """

    def __init__(
        self,
        board: Any,
        trials: Mapping[str, TrialSpec],
        places: Mapping[str, Place],
        root: Path,
        sweep: str,
        share: Share,
        most: int | None,
        requests: Callable[[], list[str]],
        say: Callable[[str], None],
    ) -> None:
        self.board, self.root, self.share, self.most = board, root, share, most
        self.trials, self.places = dict(trials), dict(places)
        self.lock = threading.Lock()
        self.requests, self.say = requests, say
        self.folder = root / "lanes" / f"{sweep}-{time.time_ns()}"
        self.closing = threading.Event()
        self.lanes: dict[str, Lane] = {}
        self.threads: list[threading.Thread] = []
        self.number = self.fruitless = 0
        self.aborted = False
        self.manager = threading.Thread(target=self._manage, daemon=True)

    def __enter__(self) -> LanePool:
        self.manager.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ask every lane to end; the threads must be over before Ray is shut down under them.

        After Ctrl-C, trials under way write a checkpoint at their next row first, unless it comes a second time:
        then workers exit where they are.
        """
        self.closing.set()
        self.manager.join()
        for lane in list(self.lanes.values()):
            lane.unwanted.set()
        if kind is not None and issubclass(kind, ray.exceptions.RayActorError):  # the board is lost: its lanes end, too
            self.aborted = True
            self._join(60)
        elif kind is None:
            for name in list(self.lanes):
                ray.get(self.board.close.remote(name))
            self._join(60)
        else:
            self.aborted = True
            try:
                ray.get(self.board.end.remote(at_once=not issubclass(kind, KeyboardInterrupt)))
                if self.lanes and issubclass(kind, KeyboardInterrupt):
                    self.say("stopping: trials under way write a checkpoint at their next row; Ctrl-C again to end now")
                self._join(STOP_S)
            except KeyboardInterrupt:
                self.say("ended now; trials go on from their newest checkpoint")
            if self.lanes:
                ray.get(self.board.end.remote(at_once=True))
                self._join(60)
        self.share.leave()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _join(self, timeout_s: float) -> None:
        """Of every lane's thread, ended ones too: what a thread still holds of Ray may not outlive Ray."""
        end = time.monotonic() + timeout_s
        for thread in self.threads:
            while thread.is_alive() and time.monotonic() < end:
                thread.join(timeout=0.2)  # in pieces, so that a second Ctrl-C is heard

    def _manage(self) -> None:
        try:
            self._open_and_close()
        except Exception:  # raised again, once the board knows; at the end of a sweep there is nothing to tell it
            if self.closing.is_set():
                raise
            try:  # nobody would open a lane again
                ray.get(self.board.give_up.remote("the lanes are managed no more; the driver's log has the reason"))
            except ray.exceptions.RayActorError:
                return  # that is the reason, and the driver says it
            raise

    def _open_and_close(self) -> None:
        said = ""
        while not self.closing.wait(HEARTBEAT_S if self.number else 0):
            for key in self.requests():
                self._drop(key)
            for key, measure in ray.get(self.board.take_measures.remote()):
                self._note(key, Measure(**measure))
            state: State = ray.get(self.board.state.remote())
            lanes = list(self.lanes.values())  # a lane that ends meanwhile takes itself off the list
            for lane in lanes:
                lane.up, lane.key = lane.name in state.busy, state.busy.get(lane.name)
                lane.card = state.cards.get(lane.name, "")
            unplaced = self._unplaced()
            wants, spare = lanes_wanted(state.left, lanes, self.most)
            if unplaced:
                spare = []  # what idles may hold the card, or the part of it, that another waits for
            granted = self.share.update(nodes(), wants, spare)
            todo = changes(granted, dict(wants), lanes, time.monotonic())
            for lane in lanes:
                if lane.name in todo.close:
                    lane.asked_to_end = True
                    lane.unwanted.set()
                    ray.get(self.board.close.remote(lane.name, break_off=True))
            for shape in todo.open:
                self._open(shape)
            why = why_waiting(wants, granted, lanes, free(), unplaced, self.share.others)
            if why and why != said:
                self.say(why)
            said = why or said

    def _drop(self, key: str) -> None:
        """Stop one trial; what no lane runs has its last word from here."""
        if not ray.get(self.board.drop.remote(key)):
            TrialFolder(self.root / "trials" / key).stop_by_hand()

    def _unplaced(self) -> bool:
        """Whether a lane's workers have had no room for a while."""
        late = [lane for lane in list(self.lanes.values()) if not lane.up and time.monotonic() - lane.opened > SOON_S]
        return bool(late) and any(group["state"] == "PENDING" for group in placement_group_table().values())

    def _open(self, shape: Shape) -> None:
        name = f"lane-{self.number}"
        self.number += 1
        ray.get(self.board.open.remote(name, shape))
        self.lanes[name] = Lane(name, shape, time.monotonic())
        thread = threading.Thread(target=self._run, args=(self.lanes[name],), daemon=True)
        self.threads.append(thread)
        thread.start()

    def _run(self, lane: Lane) -> None:
        try:
            self._train(lane)
        except ray.exceptions.RayActorError:
            pass  # there is no board any more, and the driver says so
        finally:
            del self.lanes[lane.name]

    def _train(self, lane: Lane) -> None:
        """Until the lane ends; the board hears of it, and the record of what it leaves unfinished."""
        name, shape = lane.name, lane.shape
        error, died = None, False
        try:
            self._trainer(lane).fit()
        except TrainingFailedError as failure:
            if lane.up or not lane.unwanted.is_set():
                error, died = _reason(failure)
        except ray.exceptions.RayError as lost:
            error, died = str(lost), True
        if error is not None and (group := ray.get(self.board.group_of.remote(name))) is not None:
            remove_placement_group(group)  # if Ray Train has left it, nobody else does while this driver lives
        if error is not None and is_out_of_memory(error):
            self._make_room(name, shape)
        left = ray.get(self.board.lane_ended.remote(name, error, died))
        for key in () if self.aborted else left:
            beside = f"one of {len(left)} trained together; each goes on alone: " if len(left) > 1 else ""
            TrialFolder(self.root / "trials" / key).add_failure(f"{beside}{error}")
        self.fruitless = self.fruitless + 1 if error is not None and not lane.up else 0
        if self.fruitless >= FRUITLESS and not any(other.up for other in list(self.lanes.values()) if other != lane):
            ray.get(self.board.give_up.remote(f"no worker group comes up: {error}"))

    def _make_room(self, name: str, shape: Shape) -> None:
        """A lane has run out of memory: a smaller group; else a larger share of a GPU, else fewer sequences at once."""
        specs: dict[str, str] = ray.get(self.board.running_in.remote(name))
        given = {key: TrialSpec.model_validate_json(spec) for key, spec in specs.items()}
        if not given:
            return
        evaluating = EVALUATE in ray.get(self.board.phases_in.remote(name))
        if len(given) > 1 and not evaluating:
            half = len(given) // 2
            alone = regrouped(given, half)
            self._say_out_of_memory(list(given), f"{half} at most together", f"{half} of them at once")
            ray.get(self.board.try_again.remote(name, list(given), {}, {}, alone))
            return
        with self.lock:  # one lane at a time: two that fail together halve once
            trial = next(iter(given.values()))
            if (count := larger_share(trial, shape, self.root)) is not None:
                again, now = in_words(count), f"a trial like it gets {in_words(count)}"
            elif evaluating and (less := fewer_answers(trial, self.root)) is not None:
                again = f"{less.evaluated_at_once} prompts at once"
                now = f"a worker evaluates {again}, the draws stay"
            elif not evaluating and (less := smaller(trial, self.root)) is not None:
                again = f"{micro_batch_size(less)} sequences at once"
                now = f"a worker takes {again}, the batch stays"
            else:
                return
            specs, places = self._placed_again()
            self._say_out_of_memory(list(given), again, now, " in evaluation" if evaluating else "")
            # what was learnt of training was learnt alone; evaluation is each one's own in a group, too
            ray.get(
                self.board.try_again.remote(
                    name, list(given), specs, places, {} if evaluating else dict.fromkeys(specs)
                )
            )

    def _say_out_of_memory(self, keys: list[str], again: str, now: str, where: str = "") -> None:
        """To the record and to people."""
        for key in keys:
            TrialFolder(self.root / "trials" / key).add_failure(f"out of memory{where}; again with {again}")
        together = " together" if len(keys) > 1 and not where else ""
        self.say(f"{' and '.join(keys)}: out of memory{where}{together}; from now on {now}")

    def _placed_again(self) -> tuple[dict[str, str], dict[str, Place]]:
        """What is changed by what the storage knows now: specs, and places.

        To be sent before the lock is given back: the board takes what comes last.
        """
        fit = {k: fitting(t, self.root) for k, t in self.trials.items()}
        at = {k: placed(t, self.root) for k, t in fit.items()}
        specs = {k: t.model_dump_json() for k, t in fit.items() if t != self.trials[k]}
        places = {k: place for k, place in at.items() if place != self.places[k]}
        self.trials, self.places = fit, at
        return specs, places

    def _note(self, key: str, measure: Measure) -> None:
        """A trial has told what it took: others like it may be placed by that."""
        with self.lock:
            trial = self.trials[key]
            remember(trial, measure, self.root)
            # by what was known here: another sweep on this storage may have measured its kind first
            if placed(trial, self.root) == self.places[key]:
                return
            specs, places = self._placed_again()
            ray.get(self.board.place.remote(places, specs))
            count = parts_of(self.places[key].shape.gpus)
        peak, of = (f"{n / GIB:.1f} GiB" for n in (measure.peak_bytes + measure.outside_bytes, measure.total_bytes))
        self.say(f"{key} took {peak} of a GPU's {of}: a trial like it gets {in_words(count)}")

    def _trainer(self, lane: Lane) -> LaneTrainer:
        name, shape = lane.name, lane.shape
        return LaneTrainer(
            serve,
            board=self.board,
            lane=name,
            unwanted=lane.unwanted,
            train_loop_config={
                "board": self.board,
                "lane": name,
                "root": str(self.root),
                "cpus": shape.cpus,
                "gpus": shape.gpus,
            },
            scaling_config=ScalingConfig(
                num_workers=shape.workers,
                use_gpu=shape.gpus > 0,
                resources_per_worker=shape.each,
            ),
            backend_config=LaneConfig(self.board, name),
            run_config=RunConfig(
                name=name,
                storage_path=str(self.folder),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=START_ATTEMPTS),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
            ),
        )


def free() -> dict[str, float]:
    """What nobody has reserved, over the whole cluster."""
    return {name: ray.available_resources().get(name, 0.0) for name in ("CPU", "GPU")}


def is_death(error: Exception) -> bool:
    """Whether a worker's error is the death of one, its own or a peer's; else something in it was raised.

    Ray Train 2.60 hands on what a training function raised as it was raised; a death is an error of Ray's own.
    """
    if isinstance(error, UserExceptionWithTraceback):
        error = error._base_exc
    return isinstance(error, RayTrainError | ray.exceptions.RayError) or any(sign in str(error) for sign in PEER_GONE)


def _reason(failure: TrainingFailedError) -> tuple[str, bool]:
    """Text of the failure, and whether a worker died (worth another try) rather than raised (not worth one)."""
    if not isinstance(failure, WorkerGroupError):
        return COLOURS.sub("", str(failure)), True
    died = any(is_death(error) for error in failure.worker_failures.values())
    return COLOURS.sub("", "\n".join(str(e) for e in failure.worker_failures.values())), died
