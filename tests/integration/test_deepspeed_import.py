"""The import shortcuts of jobs/deepspeed_import.py still apply, and are needed."""

import json
import subprocess
import sys
from pathlib import Path

CODE = """
import json, sys
from jobs.deepspeed_import import import_deepspeed
import torch
compile_before = torch.compile
deepspeed = import_deepspeed()
comm = sys.modules["deepspeed.comm.torch"]
from pathlib import Path
print(json.dumps({
    "mlflow": "mlflow" in sys.modules,
    "inductor": "torch._inductor.compile_fx" in sys.modules,
    "compile": torch.compile is compile_before,
    "built": comm.build_shm_op(),
    "builds": "def build_shm_op(" in Path(comm.__file__).read_text(),
    "version": deepspeed.__version__,
}))
"""
PLAIN = "import deepspeed, sys, json; print(json.dumps({'mlflow': 'mlflow' in sys.modules}))"


def last_line(code: str, *args: object) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_lean_import_loads_neither_mlflow_nor_inductor_and_builds_nothing() -> None:
    seen = last_line(CODE)
    assert seen["version"].startswith("0.19.")  # another series: look at every patch again
    assert (seen["mlflow"], seen["inductor"], seen["compile"], seen["built"]) == (False, False, True, None)
    assert seen["builds"], "what is patched away is there no more, under this name"


def test_the_plain_import_still_loads_mlflow() -> None:
    assert last_line(PLAIN)["mlflow"], "the shortcut for mlflow is no longer needed"


MODELS = """
import json, sys
from jobs.hf import import_transformers
hf = import_transformers()
model = hf.LlamaForCausalLM(hf.LlamaConfig(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1))
seen = {"lean": "scipy.optimize" not in sys.modules}
from scipy.optimize import linear_sum_assignment
print(json.dumps(seen | {"whole": linear_sum_assignment is not None}))
"""
PLAIN_MODELS = (
    "import transformers.modeling_utils, sys, json; print(json.dumps({'scipy': 'scipy.optimize' in sys.modules}))"
)


def test_models_are_imported_without_scipy_which_is_there_for_others() -> None:
    assert last_line(MODELS) == {"lean": True, "whole": True}
    assert last_line(PLAIN_MODELS)["scipy"], "the shortcut for scipy is no longer needed"


TOKENIZER = """
import json, sys
from pathlib import Path
from jobs.backbone import load_tokenizer
from jobs.corpus import Reader, corpus
from jobs.spec import BackboneSpec
from jobs.task_spec import TaskSpec
backbone, root = BackboneSpec(builtin="char-llama", pretrain_steps=60), Path(sys.argv[1])
ours = load_tokenizer(backbone, root)
task = TaskSpec(builtin="addition", train_examples=64, heldout_examples=8)
corpus(ours, task, Path(sys.argv[2]), lambda *_: None, Reader(root))
seen = {"torch": "torch" in sys.modules, "deepspeed": "deepspeed" in sys.modules}
from transformers import AutoTokenizer
from jobs.backbone import local_dir
from jobs.corpus import tokeniser_digest
found = AutoTokenizer.from_pretrained(local_dir(backbone, root))
print(json.dumps(seen | {"same": tokeniser_digest(ours) == tokeniser_digest(found)}))
"""


def test_a_driver_that_tokenises_needs_neither_torch_nor_deepspeed(backbones: Path, tmp_path: Path) -> None:
    assert last_line(TOKENIZER, backbones, tmp_path) == {"torch": False, "deepspeed": False, "same": True}
