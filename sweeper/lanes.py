"""Lanes under way: as many Ray Train runs as trials are left for and the cluster grants, each in a thread."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.util import placement_group_table, remove_placement_group

from cluster.broker import HEARTBEAT_S, Share
from cluster.connect import nodes
from cluster.resources import Shape
from jobs.clock import EVALUATE
from jobs.failure import PEER_SIGNS, Failure, Kind, root_cause
from jobs.process_group import LaneConfig, serve
from jobs.record import TrialFolder
from jobs.spec import TrialSpec
from jobs.zero import micro_batch_size
from sweeper.board import Ended, Place, State
from sweeper.fitting import fewer_answers, fitting, smaller
from sweeper.gpu_memory import larger_share, placed, remember
from sweeper.gpu_share import Measure, in_words, parts_of
from sweeper.grouping import regrouped
from sweeper.lane_policy import Lane, changes, lanes_wanted, why_waiting
from sweeper.lane_trainer import LaneTrainer
from sweeper.retries import Breaker, Retries

# the board has died, or Ray's memory monitor has killed it
BOARD_LOST = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
GIB = 1 << 30
START_ATTEMPTS = 10  # of a lane whose workers cannot be placed; Ray Train's default is without end
FRUITLESS = 3  # lanes of a shape in a row whose workers never came: then none will
SOON_S = 5.0  # a lane that is not up by then may be waiting for room: say so
STOP_S = 600.0  # for trials to reach their next row and write a checkpoint; a second Ctrl-C does not wait


class LanePool:
    """The lanes of one sweep. A lane that dies tells the board and is replaced while trials are left.

    trials:   key -> trial, as they are to be run; places: what each of them occupies
    most:     trials at once, over all shapes
    retries:  whether a trial that failed starts again
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
        retries: Retries,
        requests: Callable[[], list[str]],
        say: Callable[[str], None],
    ) -> None:
        self.board, self.root, self.share, self.most = board, root, share, most
        self.trials, self.places = dict(trials), dict(places)
        self.lock = threading.Lock()
        self.retries, self.requests, self.say = retries, requests, say
        self.breaker, self.began = Breaker(trials), time.time()
        self.folder = root / "lanes" / f"{sweep}-{time.time_ns()}"
        self.closing = threading.Event()
        self.lanes: dict[str, Lane] = {}
        self.threads: list[threading.Thread] = []
        self.number = 0
        self.fruitless: Counter[Shape] = Counter()
        self.aborted = False
        self.manager = threading.Thread(target=self._manage, daemon=True)

    def __enter__(self) -> LanePool:
        self._clear_what_dead_drivers_left()
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
        if kind is not None and issubclass(kind, BOARD_LOST):  # the board is lost: its lanes end, too
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

    def _clear_what_dead_drivers_left(self) -> None:
        """Folders of Ray Train's. This driver holds the sweep's lock, so no other one of that name lives."""
        prefix = self.folder.name.rpartition("-")[0]
        for folder in self.folder.parent.glob(f"{prefix}-*"):
            if folder.name.removeprefix(f"{prefix}-").isdigit():
                shutil.rmtree(folder, ignore_errors=True)

    def _join(self, timeout_s: float) -> None:
        """Of every lane's thread, ended ones too: what a thread still holds of Ray may not outlive Ray."""
        end = time.monotonic() + timeout_s
        for thread in self.threads:
            while thread.is_alive() and time.monotonic() < end:
                thread.join(timeout=0.2)  # in pieces, so that a second Ctrl-C is heard

    def _manage(self) -> None:
        try:
            self._open_and_close()
        except Exception as error:  # raised again, once the board knows; at the end of a sweep it need not
            if self.closing.is_set():
                raise
            try:  # nobody would open a lane again
                ray.get(self.board.give_up.remote(Failure.of(error).record()))
            except BOARD_LOST:
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
        except BOARD_LOST:
            pass  # there is no board any more, and the driver says so
        finally:
            del self.lanes[lane.name]

    def _train(self, lane: Lane) -> None:
        """Until the lane ends; the record and the board hear what it leaves unfinished, and why."""
        name, failure = lane.name, None
        try:
            self._trainer(lane).fit()
        except (TrainingFailedError, ray.exceptions.RayError) as error:
            # a lane that waited for room when nobody wanted it any more has not failed
            if ray.get(self.board.has_come_up.remote(name)) or not lane.unwanted.is_set():
                failure = why_ended(error, ray.get(self.board.told_by.remote(name)))
        again: list[str] = []
        if failure is not None:
            if (group := ray.get(self.board.group_of.remote(name))) is not None:
                remove_placement_group(group)  # if Ray Train has left it, nobody else does while this driver lives
            if failure.kind is Kind.OUT_OF_MEMORY:
                self._make_room(name, lane.shape)
            again = self._record(failure, list(ray.get(self.board.running_in.remote(name))))
        ended: Ended = ray.get(self.board.lane_ended.remote(name, failure and failure.record(), again))
        if failure is not None and not ended.came_up:
            self._no_worker(lane.shape, failure, ended.beside)
        elif ended.came_up:
            self.fruitless.pop(lane.shape, None)

    def _record(self, failure: Failure, keys: list[str]) -> list[str]:
        """Write a lane's failure into the records of its trials. Returns the keys of those that start again."""
        if self.aborted:
            return []
        again = []
        for key in keys:
            folder = TrialFolder(self.root / "trials" / key)
            own = failure.at(folder.last_step())
            if len(keys) > 1:
                folder.add_failure(own, f"one of {len(keys)} trained together; each goes on alone")
                again.append(key)
                continue
            folder.add_failure(own)
            if self.retries.again(key, own):
                again.append(key)
            else:
                self._pause_what_is_alike(key, own)
        return again

    def _pause_what_is_alike(self, key: str, failure: Failure) -> None:
        with self.lock:
            pause = self.breaker.failed(key, failure, self._finished())
        if pause is None:
            return
        if held := ray.get(self.board.pause.remote(sorted(pause.trials - {key}), pause.reason)):
            self.say(f"paused {len(held)} trials: {pause.reason}")

    def _finished(self) -> Iterator[str]:
        """Keys of trials that have finished since this pool began; read when it is asked."""
        for key in self.trials:
            result = TrialFolder(self.root / "trials" / key).result()
            if result is not None and result["status"] == "finished" and result["time"] >= self.began:
                yield key

    def _no_worker(self, shape: Shape, failure: Failure, beside: bool) -> None:
        """A lane ended before its workers asked for a trial. After some in a row its shape is given up, no other."""
        self.fruitless[shape] += 1
        if self.fruitless[shape] < FRUITLESS or beside:
            return
        reason = f"no worker group comes up: {failure.line}"
        known = replace(failure, kind=Kind.NOT_STARTED, type="NotStarted", message=reason)
        ray.get(self.board.give_up.remote(known.record(), shape))

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
            folder = TrialFolder(self.root / "trials" / key)
            message = f"out of memory{where}; again with {again}"
            folder.add_failure(Failure(Kind.OUT_OF_MEMORY, "OutOfMemory", message, step=folder.last_step()))
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


def why_ended(error: Exception, told: Sequence[Mapping[str, Any]]) -> Failure:
    """Why a lane failed. told: what its ranks raised (Failure.record), in the order in which it was told.

    A rank that trains and raises says so before it goes. So what no rank has told is a death, or an error of before
    the workers came up.
    """
    raised = [Failure.read(record) for record in told]
    if (cause := root_cause(raised)) is not None:
        return cause
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    deaths = {rank: one for rank, one in failures.items() if not _is_peers_loss(one)} or failures
    rank = min(deaths, default=None)
    text = "\n".join(str(one) for one in failures.values()) or str(error)
    causes = list(_causes([error, *failures.values()]))
    if not raised and not any(isinstance(one, ray.exceptions.RayActorError) for one in causes):
        return Failure.of_words(text, rank)  # while the workers came up, before they could tell
    return Failure.of_death(text, rank, any(getattr(one, "preempted", False) for one in causes))


def _is_peers_loss(error: BaseException) -> bool:
    return any(sign in str(error) for sign in PEER_SIGNS)


def _causes(errors: Sequence[BaseException]) -> Iterator[BaseException]:
    """Errors, what they were raised from, and what they carry."""
    left, seen = list(errors), set[int]()
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        carried = [one.__cause__, getattr(one, "health_check_failure", None), getattr(one, "controller_failure", None)]
        left += [other for other in carried if isinstance(other, BaseException)]
