"""The hub's real client against a hub on loopback: models and data sets by id and revision, and what cannot be had."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub import Hub, Repo, served

from .conftest import free_port

ROOT = Path(__file__).parents[2]
# the client reads HF_ENDPOINT and HF_HOME when it is imported
CHILD = """
import json, sys
from pathlib import Path
from jobs.backbone import BackboneError, check_backbone, load_backbone
from jobs.sources import TaskError
from jobs.spec import BackboneSpec
from jobs.task_spec import TaskSpec
from jobs.tasks import load_task
from jobs.weights_check import check_weights

for kind, fields in json.loads(sys.argv[1]):
    try:
        if kind == "model":
            spec = BackboneSpec.model_validate(fields)
            check_backbone(spec, Path("."), 8)
            check_weights(spec, Path("."))
            if fields.get("name") == "headers":
                said = "headers"
                print(json.dumps(said), flush=True)
                continue
            said = sum(float(p.double().sum()) for p in load_backbone(spec, Path(".")).state_dict().values())
        else:
            data = load_task(TaskSpec.model_validate(fields))
            said = [len(data.train), len(data.heldout), sorted({e.response for e in data.heldout})]
    except (BackboneError, TaskError) as error:
        said = str(error)
    print(json.dumps(said), flush=True)
"""


def ask(hub: str, home: Path, *cases: tuple[str, dict[str, Any]], **environment: str) -> list[Any]:
    """What each case came to, in a process of its own: a model's sum of weights, a data set's sizes, or the message."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(cases)], capture_output=True, text=True, check=False, timeout=300,
        cwd=home.parent,
        env=kept | {"HF_ENDPOINT": hub, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(said) == len(cases), done.stderr[-3000:]
    return said


def llama(folder: Path, seed: int) -> dict[str, bytes]:
    """The files of a tiny model directory."""
    import torch

    from jobs.hf import import_transformers
    from jobs.pretrain import char_tokenizer

    hf = import_transformers()
    torch.manual_seed(seed)
    tokenizer = char_tokenizer()
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def weight_sum(files: dict[str, bytes]) -> float:
    from safetensors.torch import load

    return sum(float(p.double().sum()) for p in load(files["model.safetensors"]).values())


def headless(weights: bytes) -> bytes:
    from safetensors.torch import load, save

    return save({name: value for name, value in load(weights).items() if name != "lm_head.weight"})


def parquet(count: int, response: str) -> bytes:
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": f"{i}+1=", "response": response} for i in range(count)]
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()


def data(train: int, test: int, response: str) -> dict[str, bytes]:
    card = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: data/train-*}\n"
    card += b"  - {split: test, path: data/test-*}\n---\n"
    return {
        "README.md": card,
        "data/train-00000-of-00001.parquet": parquet(train, response),
        "data/test-00000-of-00001.parquet": parquet(test, response),
    }


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """org/tiny and org/sums in two revisions each, a gated one of each kind, and a model without safetensors."""
    made = Hub()
    tiny = made.models["org/tiny"] = Repo()
    sums = made.datasets["org/sums"] = Repo()
    for seed, name in enumerate(("main", "v1")):
        files = llama(tmp_path / name, seed)
        tiny.commit(files, name)
    sums.commit(data(40, 10, "new"), "main")
    sums.commit(data(30, 8, "old"), "v1")
    pickled = {n.replace("model.safetensors", "pytorch_model.bin"): b for n, b in files.items()}
    made.models["org/pickled"] = Repo()
    made.models["org/pickled"].commit(pickled, "main")
    made.models["org/headless"], made.models["org/adapted"] = Repo(), Repo()
    made.models["org/headless"].commit(files | {"model.safetensors": headless(files["model.safetensors"])}, "main")
    made.models["org/adapted"].commit(files | {"adapter_config.json": b"{}"}, "main")
    for kind in (made.models, made.datasets):
        kind["org/gated"] = Repo(gated=True)
        kind["org/gated"].commit({"config.json": b"{}"}, "main")
    with served(made):
        yield made


def test_backbones_and_data_sets_come_by_id_and_revision_and_from_the_cache_without_a_network(
    hub: Hub, tmp_path: Path
) -> None:
    heldout = {"heldout_split": "test"}
    commit = hub.datasets["org/sums"].refs["v1"]
    cases: list[tuple[str, dict[str, Any]]] = [
        ("model", {"hub": "org/tiny"}), ("model", {"hub": "org/tiny", "revision": "v1"}),
        ("data", {"hub": "org/sums", **heldout}), ("data", {"hub": "org/sums", "revision": "v1", **heldout}),
        ("data", {"hub": "org/sums", "revision": commit, "split": "train+test"}),
    ]  # fmt: skip
    tiny = hub.models["org/tiny"]
    one, other = (pytest.approx(weight_sum(tiny.commits[tiny.refs[name]])) for name in ("main", "v1"))
    wanted = [one, other, [40, 10, ["new"]], [30, 8, ["old"]], [35, 3, ["old"]]]
    home = tmp_path / "cache"
    assert ask(hub.url, home, *cases) == wanted
    assert any("resolve" in asked and "safetensors" in asked for asked in hub.asked)
    hub.asked.clear()
    assert ask(hub.url, home, *cases[1:2], *cases[3:], HF_HUB_OFFLINE="1") == [wanted[1], *wanted[3:]]
    assert hub.asked == []
    # a pinned revision that was never fetched is not another one that was
    (said,) = ask(hub.url, home, ("data", {"hub": "org/sums", "revision": "v2"}), HF_HUB_OFFLINE="1")
    assert said.startswith("data set org/sums: revision 'v2' is not in the cache (commit ")


# what is asked for, and what is said of it; the end of each message says what instead
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("model", {"hub": "org/gated"}, "backbone 'gated': model org/gated is gated: accept its terms on the hub, and set "
     "HF_TOKEN to a token of the account that did"),
    ("data", {"hub": "org/gated"}, "data set org/gated is gated: accept its terms on the hub, and set HF_TOKEN to a "
     "token of the account that did"),
    ("model", {"hub": "org/none"}, "backbone 'none': the hub has no model org/none, or not for you; check the id, or "
     "set HF_TOKEN to a token that may read it"),
    ("data", {"hub": "org/none"}, "the hub has no data set org/none, or not for you; check the id, or set HF_TOKEN to "
     "a token that may read it"),
    ("model", {"hub": "org/tiny", "revision": "v9"}, "backbone 'tiny': model org/tiny has no revision 'v9'; name a "
     "commit, tag or branch of it, or leave revision out for main"),
    ("data", {"hub": "org/sums", "revision": "v9"}, "data set org/sums has no revision 'v9'; name a commit, tag or "
     "branch of it, or leave revision out for main"),
    ("data", {"hub": "org/sums", "split": "dev"}, "cannot get split 'dev' of data set org/sums: Unknown split \"dev\". "
     "Should be one of ['train', 'test']; name one that it has"),
    ("data", {"hub": "org/sums", "subset": "x"}, "cannot get split 'train' of data set org/sums (x): BuilderConfig 'x' "
     "not found. Available: ['default']; name one that it has"),
    ("model", {"hub": "org/pickled"}, "backbone 'pickled': org/pickled has no *.safetensors; other formats are not "
     "loaded: convert it once and give its directory as path"),
    ("model", {"hub": "org/headless"}, "backbone 'headless': org/headless: 1 tensor is missing: lm_head.weight. A "
     "missing tensor would be drawn at random: save the model again, whole"),
    ("model", {"hub": "org/adapted"}, "backbone 'adapted': org/adapted holds a full model and an adapter "
     "(adapter_config.json), which transformers would add to the model without a word; move the adapter's files "
     "elsewhere to train the model alone, or merge the adapter into it"),
    ("model", {"hub": "a/b/c"}, "backbone 'c': a/b/c is no id of the hub; write ORGANISATION/NAME, or give a "
     "local directory as path"),
]  # fmt: skip


@pytest.mark.parametrize("token", [None, "hf_somebody"])
def test_what_the_hub_refuses_is_one_line_that_says_what_instead(hub: Hub, tmp_path: Path, token: str | None) -> None:
    said = ask(
        hub.url, tmp_path / "cache", *((kind, fields) for kind, fields, _ in REFUSED),
        **({} if token is None else {"HF_TOKEN": token}),
    )  # fmt: skip
    assert said == [message for *_, message in REFUSED]


def test_a_hub_models_tensors_are_compared_by_their_headers_alone(hub: Hub, tmp_path: Path) -> None:
    """No weights are downloaded for it; a second look at the same commit asks for no header."""
    case = ("model", {"hub": "org/tiny", "name": "headers"})
    for headers in (True, False):
        hub.asked.clear()
        assert ask(hub.url, tmp_path / "cache", case) == ["headers"]
        assert any(asked.endswith("model.safetensors") and asked.startswith("GET") for asked in hub.asked) == headers
    assert not list((tmp_path / "cache").rglob("model.safetensors"))


def test_without_a_network_the_line_says_so(tmp_path: Path) -> None:
    """A port where nobody listens takes the client's own retries, some twenty seconds; offline it does not ask."""
    model, rows = ("model", {"hub": "org/tiny"}), ("data", {"hub": "org/sums"})
    nobody = f"http://127.0.0.1:{free_port()}"
    offline = ask(nobody, tmp_path / "cache", model, rows, HF_HUB_OFFLINE="1")
    assert offline == [
        "backbone 'tiny': model org/tiny is not in the cache and HF_HUB_OFFLINE is set; fetch it once without, or give "
        "a local directory as path",
        "data set org/sums is not in the cache and HF_HUB_OFFLINE is set; fetch it once without, or give a local file "
        "as path",
    ]
    assert ask(nobody, tmp_path / "cache", model, rows) == [
        "backbone 'tiny': model org/tiny is not in the cache and the hub does not answer; check the network, or give a "
        "local directory as path",
        "data set org/sums is not in the cache and the hub does not answer; check the network, or give a local file as "
        "path",
    ]
