"""What the script of an arm with a vLLM server does around it. A stand-in answers for vLLM, which needs GPUs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.real_slurm import RealSlurm

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

SERVER = """#!/usr/bin/env python3
import http.server, json, os, pathlib, signal, sys
folder = pathlib.Path(__file__).parent
(folder / "server.json").write_text(json.dumps({"words": sys.argv[1:], "gpus": os.environ["CUDA_VISIBLE_DEVICES"]}))
def end(*_):
    (folder / "server_ended").touch()
    os._exit(0)
signal.signal(signal.SIGTERM, end)
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
http.server.HTTPServer(("localhost", int(sys.argv[sys.argv.index("--port") + 1])), Health).serve_forever()
"""
TRAINER = """
import json, os, pathlib, sys, urllib.request
url = sys.argv[sys.argv.index("--vllm_server_base_url") + 1]
health = urllib.request.urlopen(url + "/health").status
said = {"words": sys.argv[1:], "gpus": os.environ["CUDA_VISIBLE_DEVICES"], "health": health}
(pathlib.Path(__file__).parent / f"trainer{os.environ['RANK']}.json").write_text(json.dumps(said))
"""
DIES = """#!/bin/bash
echo "no memory for the cache"
exit 1
"""


def prepare(folder: Path, server: str, cluster_file: Callable[..., Path], *environment: str) -> Path:
    """Lays server and trainer into a folder, and returns a cluster that finds them."""
    (folder / "vllm").write_text(server)
    (folder / "vllm").chmod(0o755)
    (folder / "stand_in_trainer.py").write_text(TRAINER)
    return cluster_file(
        gpus_per_node=8,
        cpus_per_gpu=1,
        environment=[f"export PATH={folder}:$PATH PYTHONPATH={folder}", *environment],
    )


@pytest.mark.parametrize(
    ("given", "gpus"), [("unset CUDA_VISIBLE_DEVICES", "0,1,2"), ("export CUDA_VISIBLE_DEVICES=2,5,7", "2,5,7")]
)
def test_the_first_gpus_serve_and_the_others_train_and_the_server_ends_with_them(
    slurm: RealSlurm,
    submit: Callable[..., str],
    cluster_file: Callable[..., Path],
    tmp_path: Path,
    given: str,
    gpus: str,
) -> None:
    cluster = prepare(tmp_path, SERVER, cluster_file, given)
    identifier = submit(
        "arm", ["stand_in_trainer", "--seed", "3"], tmp_path / "out", cluster,
        shape="vllm", gpus=2, server_gpus=1, server_model="a model", server_options=("--max-model-len", "64"),
    )  # fmt: skip
    state = slurm.wait_until_idle(within_s=120)[identifier]
    log = (tmp_path / "slurm" / "logs" / "arm.1.log").read_text()
    assert state == "COMPLETED", log
    server = json.loads((tmp_path / "server.json").read_text())
    trainers = [json.loads((tmp_path / f"trainer{rank}.json").read_text()) for rank in (0, 1)]
    assert server["words"][:2] == ["serve", "a model"] and server["words"][-2:] == ["--max-model-len", "64"]
    first, _, others = gpus.partition(",")
    assert [server["gpus"], *(each["gpus"] for each in trainers)] == [first, others, others]
    for each in trainers:
        assert each["health"] == 200 and each["words"][:2] == ["--seed", "3"] and "server" in each["words"]
    assert (tmp_path / "server_ended").exists()


def test_a_server_that_dies_ends_the_job_with_its_log(
    slurm: RealSlurm, submit: Callable[..., str], cluster_file: Callable[..., Path], tmp_path: Path
) -> None:
    cluster = prepare(tmp_path, DIES, cluster_file)
    identifier = submit(
        "arm", ["stand_in_trainer"], tmp_path / "out", cluster, shape="vllm", gpus=2, server_gpus=1, server_model="m"
    )
    state = slurm.wait_until_idle(within_s=60)[identifier]
    logs = tmp_path / "slurm" / "logs"
    said = (logs / f"arm.{identifier}.out").read_text()
    assert state == "FAILED" and "vLLM ended before it was ready" in said
    assert "no memory for the cache" in (logs / "arm.1.vllm.log").read_text()
    assert not list(tmp_path.glob("trainer*.json"))
