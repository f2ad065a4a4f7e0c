"""Debian's Prometheus scrapes the server, and every query of a dashboard gets an answer: the
series that vLLM's stock dashboard asks for, and all of ours in configs/grafana."""

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx
import openai
import pytest
from conftest import KEY, MODEL

ROOT = Path(__file__).parents[3]
NAME = f'model_name="{MODEL}"'


def quantile(name):
    return f"histogram_quantile(0.99, sum by(le) (rate({name}_bucket{{{NAME}}}[1m])))"


# The series that vLLM's dashboard shows.
STOCK = [
    quantile("vllm:e2e_request_latency_seconds"),
    quantile("vllm:inter_token_latency_seconds"),
    quantile("vllm:request_time_per_output_token_seconds"),
    quantile("vllm:time_to_first_token_seconds"),
    f"rate(vllm:e2e_request_latency_seconds_sum{{{NAME}}}[1m])",
    f"rate(vllm:e2e_request_latency_seconds_count{{{NAME}}}[1m])",
    f"rate(vllm:prompt_tokens_total{{{NAME}}}[1m])",
    f"rate(vllm:generation_tokens_total{{{NAME}}}[1m])",
    f"vllm:num_requests_running{{{NAME}}}",
    f"vllm:num_requests_waiting{{{NAME}}}",
    f"vllm:kv_cache_usage_perc{{{NAME}}}",
    f"sum by(le) (increase(vllm:request_prompt_tokens_bucket{{{NAME}}}[1m]))",
    f"sum by(le) (increase(vllm:request_generation_tokens_bucket{{{NAME}}}[1m]))",
    f"sum by(finished_reason) (increase(vllm:request_success_total{{{NAME}}}[1m]))",
    f"rate(vllm:request_queue_time_seconds_sum{{{NAME}}}[1m])",
    f"rate(vllm:request_prefill_time_seconds_sum{{{NAME}}}[1m])",
    f"rate(vllm:request_decode_time_seconds_sum{{{NAME}}}[1m])",
    f"rate(vllm:request_max_num_generation_tokens_sum{{{NAME}}}[1m])",
    "vllm:cache_config_info",
    f"rate(vllm:spec_decode_num_accepted_tokens_per_pos_total{{{NAME}}}[1m])",
]


def ours():
    """The queries of our dashboards, with Grafana's variables filled in: its own, then theirs."""
    queries = []
    for file in sorted((ROOT / "configs/grafana").rglob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            queries += [target["expr"] for target in panel.get("targets", [])]
    for variable, value in {
        "__rate_interval": "1m",
        "__interval": "15s",
        "model": MODEL,
        "instance": ".*",
    }.items():
        queries = [
            q.replace(f"${{{variable}}}", value).replace(f"${variable}", value) for q in queries
        ]
    return queries


@pytest.fixture(scope="module")
def prometheus(url, tmp_path_factory):
    program = shutil.which("prometheus")
    assert program, "install Debian's prometheus"
    home = tmp_path_factory.mktemp("prometheus")
    target = url.removeprefix("http://")
    config = home / "prometheus.yml"
    job = {"job_name": "kilotok", "static_configs": [{"targets": [target]}]}
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={home}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    with subprocess.Popen(command) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
                yield http
        finally:
            process.terminate()


def answers(prometheus, query):
    reply = prometheus.get("/api/v1/query", params={"query": query}).json()
    assert reply["status"] == "success", (query, reply)
    return reply["data"]["result"]


def test_every_query_of_a_dashboard_has_an_answer(prometheus, client):
    def serve():
        messages = [{"role": "user", "content": "say:some words for the graphs"}]
        client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("nobody")

    missing = [*STOCK, *ours()]
    assert len(missing) > len(STOCK), "configs/grafana has no dashboard"
    # A rate needs two scrapes with traffic between them.
    for _ in range(60):
        serve()
        try:
            missing = [query for query in missing if not answers(prometheus, query)]
        except httpx.TransportError:
            pass
        if not missing:
            break
        time.sleep(0.5)
    assert not missing, "\n".join(missing)
    up = answers(prometheus, "up")
    assert up[0]["value"][1] == "1"
    assert KEY not in str(up)
