"""Shares of a GPU: never less than was measured, never more than a card, larger ones before fewer at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.resources import Room, Shape, lanes_that_fit, place
from jobs.meter import HostMeter, host_bytes
from jobs.spec import Execution, TrialSpec
from jobs.zero import check_shape
from sweeper.board import Board, Place
from sweeper.gpu_memory import larger_share, placed, remember, shape_of, smallest_shape, why_whole
from sweeper.gpu_share import MARGIN, MOST, Measure, after_out_of_memory, in_words, parts, parts_of, share
from sweeper.plan import make_plan
from sweeper.run import gpus_left_idle
from sweeper.spec import parse_sweep
from sweeper.store import Store
from sweeper.table import plan_facts, print_plan
from sweeper.tracking import _memory_tags

from .test_fitting import other
from .test_settings import trial

GIB = 1 << 30
MEASURES = st.builds(Measure, st.integers(1, 200 * GIB), st.integers(0, 4 * GIB), st.integers(GIB, 200 * GIB))


def auto(**update: object) -> TrialSpec:
    return other(trial(batch_size=8), execution={"gpus_per_worker": "auto"}, **update)


@given(MEASURES, st.integers(1, 9))
def test_a_share_has_what_is_needed_with_its_margin_and_a_card_has_all_shares(measure: Measure, at_most: int) -> None:
    count = parts(measure, at_most)
    assert 1 <= count <= min(MOST, at_most)
    if count > 1:
        assert measure.total_bytes * share(count) * (1 + 1e-9) >= measure.peak_bytes * MARGIN + measure.outside_bytes
    assert parts_of(share(count)) == count
    assert count * share(count) <= 1 + 1e-9
    assert lanes_that_fit([{"CPU": 99, "GPU": 3}], Shape(1, 1, share(count))) == 3 * count


@given(st.lists(st.sampled_from([1.0, share(2), share(3), share(4)]), max_size=30))
def test_no_card_is_given_more_than_once(shares: list[float]) -> None:
    node = Room({"CPU": 99, "GPU": 3})
    taken = sum(gpus for gpus in shares if place(Shape(1, 1, gpus), [node]))
    assert all(-1e-9 <= card <= 1 for card in node.cards)
    assert taken == pytest.approx(3 - sum(node.cards))


def test_a_sweep_that_leaves_all_gpus_idle_says_so() -> None:
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}]
    said = gpus_left_idle([trial()], nodes)
    assert said == "the cluster has 2 GPU that no trial asks for; execution.gpus_per_worker: auto trains on them"
    assert gpus_left_idle([trial(), auto()], nodes) is None
    assert gpus_left_idle([trial()], nodes[1:]) is None


@given(MEASURES, MEASURES)
def test_the_largest_need_and_the_smallest_card_decide(one: Measure, two: Measure) -> None:
    assert parts(one.joined(two)) <= min(parts(one), parts(two))
    assert one.joined(two) == two.joined(one)


def test_out_of_memory_is_answered_by_the_next_share_then_the_whole_card_then_by_fewer_at_once() -> None:
    steps, count = [], 4
    while (larger := after_out_of_memory(count, count)) is not None:
        steps.append(in_words(larger))
        count = larger
    assert steps == ["1/3 of a GPU", "1/2 of a GPU", "a whole GPU"]
    assert after_out_of_memory(had=4, now=2) == 2  # another lane has asked for more meanwhile


def test_a_kind_has_a_whole_card_until_it_is_measured_and_the_share_is_remembered(tmp_path: Path) -> None:
    spec = auto()
    first = placed(spec, tmp_path)
    assert first.shape == shape_of(spec.execution) == Shape(1, 1, 1)
    assert first.unmeasured is not None
    remember(spec, Measure(10 * GIB, GIB, 80 * GIB), tmp_path)
    assert placed(spec, tmp_path) == Place(Shape(1, 1, 0.25), outside=GIB)
    like = [auto(seed=4), auto(objective={"name": "one-minus-p"})]
    assert [placed(one, tmp_path).shape.gpus for one in like] == [0.25, 0.25]
    unlike = [
        auto(objective=None), auto(evaluation={"samples": 99}), auto(task={"builtin": "cipher"}),
        auto(train=spec.train.model_dump() | {"micro_batch_size": 2}), auto(objective={"name": "asft"}),
    ]  # fmt: skip
    assert all(placed(one, tmp_path).unmeasured for one in unlike)
    remember(spec, Measure(9 * GIB, 0, 80 * GIB), tmp_path)  # nothing new
    assert placed(spec, tmp_path) == Place(Shape(1, 1, 0.25), outside=GIB)
    remember(spec, Measure(20 * GIB, 0, 80 * GIB), tmp_path)
    assert placed(spec, tmp_path).shape.gpus == share(3)


def test_a_share_that_was_too_small_is_remembered_until_the_whole_card(tmp_path: Path) -> None:
    spec = auto()
    assert larger_share(spec, Shape(1, 1, 1), tmp_path) is None  # halve
    remember(spec, Measure(GIB, 0, 80 * GIB), tmp_path)
    for had, now in ((4, 3), (4, 3), (3, 2), (2, 1)):  # two that fail together grow once
        assert larger_share(spec, Shape(1, 1, share(had)), tmp_path) == now
        assert parts_of(placed(auto(seed=7), tmp_path).shape.gpus) == now
    assert larger_share(spec, placed(spec, tmp_path).shape, tmp_path) is None


def test_who_never_shares_has_whole_cards_and_says_why(tmp_path: Path) -> None:
    pair = other(trial(batch_size=8), execution={"gpus_per_worker": "auto", "workers": 2})
    assert placed(pair, tmp_path) == Place(Shape(2, 1, 1))
    assert smallest_shape(pair) == Shape(2, 1, 1)
    assert "NCCL" in str(why_whole(pair))
    assert "vLLM" in str(why_whole(auto(evaluation={"engine": "vllm"})))
    assert smallest_shape(auto()).gpus == share(MOST)
    assert placed(trial(), tmp_path) == Place(Shape(1, 1, 0))
    with pytest.raises(ValueError, match="NCCL has no two workers of a trial on one card"):
        check_shape(other(trial(batch_size=8), execution={"gpus_per_worker": 0.5, "workers": 2}))
    for wrong in (-1, 1.5, "some"):
        with pytest.raises(ValidationError, match="a fraction of a GPU, a whole number of them, or auto; got"):
            Execution.model_validate({"gpus_per_worker": wrong})
    assert auto().key == trial(batch_size=8).key


def test_the_plan_says_what_is_measured_and_what_is_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """
name: shared
grid: {backbone: [{builtin: char-llama, pretrain_steps: 0}], task: [{builtin: addition}], objective: [nll, one-minus-p]}
train: {lr: 1e-3, steps: 10}
execution: {gpus_per_worker: auto}
"""
    plan, store = make_plan(parse_sweep(text, "shared.yaml"), tmp_path), Store(tmp_path)
    facts = plan_facts(plan, store)
    assert [(t["gpus"], t["gpus_from"]) for t in facts["trials"]] == [(1, "unmeasured")] * 3
    assert "2 kinds are not measured yet" in facts["gpu_shares"][0]
    remember(plan.trials[-1], Measure(6 * GIB, GIB, 24 * GIB), tmp_path)
    facts = plan_facts(plan, store)
    assert [t["gpus_from"] for t in facts["trials"]] == ["unmeasured", "measured", "measured"]
    assert facts["trials"][-1]["gpus"] == share(2)
    print_plan(facts)
    assert "addition, trained: took 7.0 GiB of 24.0 GiB, gets 1/2 of a GPU" in capsys.readouterr().out


def test_mlflow_is_told_the_largest_need_and_the_share() -> None:
    memory = {"gpus": 0.25, "peak_bytes": [GIB, 3 * GIB], "outside_bytes": [GIB, 0], "total_bytes": [80 * GIB] * 2}
    assert _memory_tags(memory) == {"memory.peak_gib": "3.00", "memory.gpus_per_worker": "0.25"}
    assert _memory_tags(None) == {}  # recorded before there were measures


def test_one_trial_of_an_unmeasured_kind_runs_and_the_others_wait_for_their_places() -> None:
    async def scene() -> None:
        places = {key: Place("whole", unmeasured="kind") for key in "abc"}
        board = Board({key: key for key in "abc"}, places, False, None)
        board.lane_shape = {"one": "whole", "two": "whole", "part": "quarter"}
        for key in "abc":
            await board.post(key)
        assert (await board.state()).left == {"whole": 1}
        assert (await board.next_jobs("one", 0) or [{}])[0]["key"] == "a"
        waiting = asyncio.create_task(board.next_jobs("two", 0))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await board.lane_ended("one", {"kind": "worker died"})  # it has measured nothing: the next one does
        assert (await waiting or [{}])[0]["key"] == "b"
        await board.measured("b", {"peak_bytes": 1})
        await board.say("b", {"kind": "finished"})
        waiting = asyncio.create_task(board.next_jobs("two", 1))
        await asyncio.sleep(0.01)
        assert not waiting.done()  # the driver has not said where to
        assert await board.take_measures() == [("b", {"peak_bytes": 1})]
        await board.place({}, {})  # of another kind
        assert not waiting.done()
        await board.place({key: Place("quarter", outside=7) for key in "abc"}, {"c": "new"})
        (job,) = await board.next_jobs("part", 0) or [{}]
        assert (job["key"], job["spec"], job["outside"]) == ("c", "new", 7)
        assert not waiting.done()
        waiting.cancel()

    run(scene())


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 5))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_the_host_meter_sees_the_peak_of_each_trial_and_refuses_more_than_the_share() -> None:
    gauge = HostMeter(1)
    gauge.begin(1, 0)
    large = torch.ones(1 << 26)  # 256 MiB
    del large
    first = gauge.read()
    gauge.begin(1, 0)
    assert first["peak_bytes"] - gauge.read()["peak_bytes"] > 200 << 20
    assert first["total_bytes"] == host_bytes()
    try:
        gauge.begin(0.25, 0)
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            torch.empty(int(0.26 * host_bytes()), dtype=torch.uint8)
    finally:
        gauge.begin(1, 0)
    torch.empty(int(0.26 * host_bytes()), dtype=torch.uint8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_cuda_meter_sees_the_peak_and_keeps_a_worker_to_its_share() -> None:
    from jobs.meter import CudaMeter

    gauge = CudaMeter()
    gauge.begin(1, 0)
    large = torch.ones(1 << 28, device="cuda")  # 1 GiB
    del large
    torch.cuda.empty_cache()
    found = gauge.read()
    assert found["peak_bytes"] >= GIB
    assert 0 < found["outside_bytes"] < found["total_bytes"]
    try:
        gauge.begin(0.25, found["outside_bytes"])
        assert gauge.read()["peak_bytes"] < GIB
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            torch.empty(found["total_bytes"] // 4, dtype=torch.uint8, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
