"""What Prometheus reads."""

from __future__ import annotations

import httpx
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from tests.server.conftest import QUESTION


def read(url: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    done = httpx.get(f"{url}/metrics")
    assert done.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(done.text)
        for sample in family.samples
    }


def test_answers_tokens_and_requests_are_counted(client: OpenAI, url: str) -> None:
    before = read(url)
    asked = [{"role": "user", "content": QUESTION}]
    whole = client.chat.completions.create(model="hybridqa-retrieval", messages=asked)  # type: ignore[arg-type]
    for _ in client.chat.completions.create(model="hybridqa-retrieval", messages=asked, stream=True):  # type: ignore[call-overload]
        pass
    httpx.get(f"{url}/v1/documents/kettle")
    httpx.get(f"{url}/v1/documents/no/such")
    httpx.get(f"{url}/wp-login.php")
    after = read(url)

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after.get(key, 0.0) - before.get(key, 0.0)

    chat = "/v1/chat/completions"
    assert grown("hybridqa_requests_total", method="POST", path=chat, status="200") == 2
    assert grown("hybridqa_request_seconds_count", path=chat) == 2
    assert grown("hybridqa_answers_total", mode="retrieval", outcome="answered") == 2
    assert whole.usage is not None
    assert grown("hybridqa_tokens_total", kind="prompt") == 2 * whole.usage.prompt_tokens
    assert grown("hybridqa_tokens_total", kind="completion") == 2 * whole.usage.completion_tokens
    assert grown("hybridqa_step_seconds_count", step="first_token") == 2
    document = "/v1/documents/{doc_id:path}"
    assert grown("hybridqa_requests_total", method="GET", path=document, status="200") == 1
    assert grown("hybridqa_requests_total", method="GET", path=document, status="404") == 1
    assert grown("hybridqa_requests_total", method="GET", path="other", status="404") == 1
    assert after[("hybridqa_requests_open", ())] == 1  # the one that reads them
    assert not any("kettle" in str(key) or "wp-login" in str(key) for key in after)
