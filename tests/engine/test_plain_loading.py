"""A distilled module outside hybridqa: in plain peft and in plain vLLM, without this project's plug-in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hybridqa.models import ModelFolder

ROOT = Path(__file__).resolve().parent.parent.parent
TOKENS = 16
PLAIN = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

if __name__ == "__main__":
    model, module, rank, tokens, prompt = sys.argv[1:6]
    engine = LLM(model=model, enable_lora=True, max_lora_rank=int(rank), max_loras=1, max_model_len=512,
                 dtype="float32", enforce_eager=True, seed=0)
    assert "hybridqa" not in sys.modules
    sampling = SamplingParams(temperature=0.0, max_tokens=int(tokens))
    said = {}
    for name, lora in (("base", None), ("module", LoRARequest("module", 1, module))):
        (found,) = engine.generate([{"prompt_token_ids": json.loads(prompt)}], sampling, lora_request=lora)
        said[name] = list(found.outputs[0].token_ids)
    print("SAID", json.dumps(said))
"""


@pytest.mark.slow  # an engine of its own
def test_a_module_says_the_same_in_plain_peft_and_plain_vllm(
    model_folder: ModelFolder, tokenizer: Any, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    (module,) = (ROOT / "modules" / "demo").rglob("adapter_config.json")
    turn = {"role": "user", "content": "How many marbled tammerels did Idris Pellamy's count find in 2029?"}
    ids = tokenizer.apply_chat_template([turn], add_generation_prompt=True, return_dict=False)
    script = tmp_path / "plain.py"
    script.write_text(PLAIN)
    rank = max(8, json.loads(module.read_text())["r"])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    environment |= {"VLLM_PLUGINS": "", "VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(model_folder.path), str(module.parent), str(rank), str(TOKENS), str(ids)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("SAID"))[4:])

    model = AutoModelForCausalLM.from_pretrained(str(model_folder.path), dtype=torch.float32)
    plugged = PeftModel.from_pretrained(model, str(module.parent)).eval()
    prompt = torch.tensor([ids])
    with torch.inference_mode():
        written = plugged.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=TOKENS, do_sample=False
        )
    assert said["module"] == written[0, len(ids) :].tolist()
    assert said["module"] != said["base"]
