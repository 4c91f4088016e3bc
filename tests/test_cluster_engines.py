"""One run through real engines on this machine: Spark, Ray, torch, Dask, loky, gunicorn.

They come with the extra ``test-cluster``, over a gigabyte, and Spark needs a Java runtime:
`.ci/cluster` installs all of it and runs this.  Each test skips, with the reason, where its engine
is not installed.  Engines run in processes of their own, started as a user would start a script.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from children import environment, free_port

from adp_async.local import LocalPlatform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POINTS = 100


def needs(*modules: str, program: str = "") -> Any:
    missing = [name for name in modules if importlib.util.find_spec(name.split(".")[0]) is None]
    if program and shutil.which(program) is None:
        missing.append(program)
    reason = f"needs {', '.join(missing)}: pip install 'adp-async[test-cluster]'"
    return pytest.mark.skipif(bool(missing), reason=reason)


@pytest.fixture
def bare(api_key: Any, tmp_path: Path) -> Iterator[LocalPlatform]:
    with LocalPlatform(tmp_path / "platform", mlflow=False, key=api_key) as bare:
        yield bare


#: What every script begins with: the owner has credentials, workers have none.
HEAD = """
    import os, sys, time
    import adp_async

    def log(handle, worker, count=100, **how):
        for name in [name for name in os.environ if name.startswith(("AIDP_", "OCI_"))]:
            del os.environ[name]
        with handle.attach(**how) as run:
            for step in range(count):
                run.log_metric(f"w{worker}", step * 0.5, step)
        assert "oci" not in sys.modules
        return worker

    def owner():
        return adp_async.blocking.start_run(linger=0.2)
"""


def run_script(
    platform: LocalPlatform, folder: Path, script: str, *arguments: str, timeout: float = 240.0
) -> str:
    """Run *script* as a user does; its output.  It leaves no process behind."""
    file = folder / "script.py"
    file.write_text(textwrap.dedent(HEAD) + textwrap.dedent(script))
    env = {**environment(platform), "RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    env |= {"PYTHONPATH": os.pathsep.join([env["PYTHONPATH"], str(folder)])}
    env |= {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}
    env |= {"SPARK_LOCAL_IP": "127.0.0.1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    if java := os.environ.get("JAVA_HOME"):
        env["JAVA_HOME"] = java
    process = subprocess.Popen(
        [sys.executable, str(file), *arguments],
        env=env,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        out, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, errors = process.communicate()
        raise AssertionError(f"it hangs\n{out}\n{errors[-5000:]}") from None
    assert process.returncode == 0, f"{out}\n{errors[-5000:]}"
    return out


def only_run(platform: LocalPlatform) -> Any:
    (run,) = platform.gateway.backend.runs.values()  # type: ignore[attr-defined]
    return run


def check(run: Any, workers: int, *, prefix: str = "", status: str = "FINISHED") -> None:
    """Every point of every worker once, and the run's status."""
    counts = Counter((metric.key, metric.step) for metric in run.metrics)
    expected = {(f"{prefix}w{n}", step) for n in range(workers) for step in range(POINTS)}
    assert set(counts) == expected
    assert set(counts.values()) == {1}
    assert run.info["status"] == status


# ------------------------------------------------------------------ Spark

SPARK = """
    from pyspark.sql import SparkSession
    from adp_async.integrations.spark import shared

    def session(master="local-cluster[2,1,1024]", **conf):
        builder = SparkSession.builder.master(master).config("spark.ui.enabled", "false")
        builder = builder.config("spark.executorEnv.PYTHONPATH", os.environ["PYTHONPATH"])
        builder = builder.config("spark.python.worker.reuse", conf.pop("reuse", "true"))
        for key, value in conf.items():
            builder = builder.config(key.replace("_", "."), value)
        return builder.getOrCreate()
"""


@needs("pyspark", program="java")
@pytest.mark.parametrize("reuse", ["true", "false"])
def test_spark_executors(bare: LocalPlatform, tmp_path: Path, reuse: str) -> None:
    """Executor processes of their own, Python workers that are used again or not."""
    script = (
        SPARK
        + f"""
    if __name__ == "__main__":
        spark = session(reuse="{reuse}")
        with owner() as run, shared(run, spark) as handle:
            spark.sparkContext.parallelize(range(8), 8).foreach(lambda n: log(handle, n) and None)
        spark.stop()
    """
    )
    run_script(bare, tmp_path, script)
    check(only_run(bare), 8)


@needs("pyspark", program="java")
@pytest.mark.parametrize("reuse", ["true", "false"])
def test_spark_without_a_way_to_the_driver(bare: LocalPlatform, tmp_path: Path, reuse: str) -> None:
    """An accumulator brings home what tasks logged, once, also when one fails and runs again.

    The handle comes with each task, or by a broadcast; whoever asks for an answer is told.
    """
    script = (
        SPARK
        + f"""
    def log_or_fail(handle, n):
        log(handle, n)
        with handle.attach() as run:
            try:
                run.flush(delivered=True)
            except adp_async.BadRequest as error:
                assert "has ended" in str(error)
            else:
                raise AssertionError("there was an answer")
        try:
            os.close(os.open(os.path.join({str(tmp_path)!r}, "failed"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        raise RuntimeError("the first that ends, fails")

    if __name__ == "__main__":
        spark = session(reuse="{reuse}")
        context = spark.sparkContext
        with owner() as run, shared(run, spark, accumulator=True) as handle:
            context.parallelize(range(5), 5).foreach(lambda n: log_or_fail(handle, n))
            sent = context.broadcast(handle)
            context.parallelize(range(5, 8), 3).foreach(lambda n: log(sent.value, n) and None)
        spark.stop()
    """
    )
    run_script(bare, tmp_path, script)
    check(only_run(bare), 8)


@needs("pyspark", program="java")
def test_spark_ranks_and_home(bare: LocalPlatform, tmp_path: Path) -> None:
    """The rank is the partition; a HOME that cannot be written to does not matter."""
    script = (
        SPARK
        + """
    if __name__ == "__main__":
        spark = session(spark_executorEnv_HOME="/proc/nowhere")
        with owner() as run, shared(run, spark) as handle:
            ranks = spark.sparkContext.parallelize(range(2), 2)
            ranks.foreach(lambda n: log(handle, 0, rank="auto") and None)
        spark.stop()
    """
    )
    run_script(bare, tmp_path, script)
    counts = Counter((metric.key, metric.step) for metric in only_run(bare).metrics)
    assert set(counts) == {(f"rank{n}/w0", step) for n in range(2) for step in range(POINTS)}
    assert set(counts.values()) == {1}


@needs("pyspark", program="java")
@pytest.mark.parametrize("commit", ["stream", "task"])
def test_spark_kills(bare: LocalPlatform, tmp_path: Path, commit: str) -> None:
    """A Python worker is killed in its first attempt, an executor in another's.

    Spark runs the tasks again.  With ``commit="task"`` each task counts once; streamed at once,
    what a first attempt had handed over is there as well as all of the second.
    """
    script = (
        SPARK
        + f"""
    def once(name):
        try:
            os.close(os.open(os.path.join({str(tmp_path)!r}, name), os.O_CREAT | os.O_EXCL))
            return True
        except FileExistsError:
            return False

    def log_or_die(handle, n):
        import signal
        log(handle, n, attempt="auto", commit="{commit}")
        if n == 1 and once("worker"):
            os.kill(os.getpid(), signal.SIGKILL)
        if n == 2 and once("executor"):
            with open(f"/proc/{{os.getppid()}}/stat") as stat:  # the daemon; its parent is the JVM
                os.kill(int(stat.read().rpartition(")")[2].split()[1]), signal.SIGKILL)
            time.sleep(30)

    if __name__ == "__main__":
        spark = session()
        with owner() as run, shared(run, spark) as handle:
            spark.sparkContext.parallelize(range(6), 6).foreach(lambda n: log_or_die(handle, n))
        spark.stop()
    """
    )
    run_script(bare, tmp_path, script)
    run = only_run(bare)
    counts = Counter((metric.key, metric.step) for metric in run.metrics)
    assert set(counts) == {(f"w{n}", step) for n in range(6) for step in range(POINTS)}
    # Of the attempts that were killed after they had logged.
    assert max(counts.values()) == (2 if commit == "stream" else 1)
    assert run.info["status"] == "FINISHED"


@needs("pyspark", program="java")
def test_spark_races_and_restarts(bare: LocalPlatform, tmp_path: Path) -> None:
    """Of two attempts at once one counts, and so do the tasks of the next application.

    (Spark itself speculates on another host only.)  The second application has the same stages
    and partitions, and does other tasks.
    """
    script = (
        SPARK
        + """
    if __name__ == "__main__":
        with owner() as run:
            for application in range(2):
                spark = session()
                with shared(run, spark) as handle:
                    rows = spark.sparkContext.parallelize(range(4), 4)
                    how = {"prefix": f"{application}", "commit": "task"}
                    rows.foreach(lambda n: log(handle, n, attempt="auto", **how) and None)
                    raced = f"raced{application}"
                    rows.foreach(lambda n: log(handle, raced, attempt=raced, **how) and None)
                spark.stop()
    """
    )
    run_script(bare, tmp_path, script)
    run = only_run(bare)
    counts = Counter((metric.key, metric.step) for metric in run.metrics)
    workers = [*range(4), "raced{}"]
    expected = {f"{a}w{n}".format(a) for a in range(2) for n in workers}
    assert set(counts) == {(key, step) for key in expected for step in range(POINTS)}
    assert set(counts.values()) == {1}
    assert run.info["status"] == "FINISHED"


@needs("pyspark", program="java")
def test_spark_run_passed(bare: LocalPlatform, tmp_path: Path) -> None:
    """Passing the run itself takes the same way."""
    script = (
        SPARK
        + """
    def log_run(run, n):
        with run:
            for step in range(100):
                run.log_metric(f"w{n}", 0.5, step)

    if __name__ == "__main__":
        spark = session("local[2]")
        with owner() as run, shared(run, spark):
            spark.sparkContext.parallelize(range(4), 4).foreach(lambda n: log_run(run, n))
        spark.stop()
    """
    )
    run_script(bare, tmp_path, script)
    check(only_run(bare), 4)


# ------------------------------------------------------------------ Ray

RAY = """
    import logging
    import ray
    from adp_async.integrations.ray import collector

    def start():
        ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.ERROR)

    log_task = ray.remote(log)
"""


@needs("ray")
def test_ray_tasks_and_actors(bare: LocalPlatform, tmp_path: Path) -> None:
    """Tasks, and actors that are killed after they have logged; the collector is an actor."""
    script = (
        RAY
        + """
    @ray.remote
    class Trainer:
        def train(self, handle, worker, run_id):
            return log(handle, worker, run_id=run_id)

    if __name__ == "__main__":
        start()
        with collector(linger=0.2) as handle:
            assert handle.token not in repr(handle)
            with handle.session().start_run() as run:
                tasks = [log_task.remote(handle, n, run_id=run.run_id) for n in range(6)]
                actors = [Trainer.remote() for _ in range(2)]
                tasks += [a.train.remote(handle, 6 + n, run.run_id) for n, a in enumerate(actors)]
                ray.get(tasks)
                for actor in actors:
                    ray.kill(actor)
        ray.shutdown()
    """
    )
    run_script(bare, tmp_path, script)
    check(only_run(bare), 8)


@needs("ray")
def test_a_killed_ray_collector(bare: LocalPlatform, tmp_path: Path) -> None:
    """Ray starts it again; workers hold what they have, and nothing is lost or doubled."""
    script = (
        RAY
        + """
    @ray.remote(num_cpus=0)
    def die():
        actor = ray.get_actor("adp_async", namespace="adp_async")
        ray.kill(actor, no_restart=False)

    @ray.remote
    def log_slowly(handle, worker, run_id):
        with handle.attach(run_id) as run:
            for step in range(100):
                run.log_metric(f"w{worker}", step * 0.5, step)
                time.sleep(0.03)

    if __name__ == "__main__":
        start()
        with collector(linger=0.2) as handle:
            with handle.session().start_run() as run:
                tasks = [log_slowly.remote(handle, n, run.run_id) for n in range(2)]
                for _ in range(2):
                    time.sleep(1.2)
                    ray.get(die.remote())
                ray.get(tasks)
                run.flush()
        ray.shutdown()
    """
    )
    run_script(bare, tmp_path, script)
    check(only_run(bare), 2)


@needs("ray", "ray.tune", "pandas")
def test_ray_tune(bare: LocalPlatform, tmp_path: Path) -> None:
    """A run for each trial, started by the trial, without credentials there."""
    script = (
        RAY
        + f"""
    from ray import tune

    def trial(config):
        with config["handle"].session().start_run(run_name=f"trial {{config['lr']}}") as run:
            for step in range(100):
                run.log_metric("w0", config["lr"], step)
            run.flush()
        tune.report({{"loss": config["lr"]}})

    if __name__ == "__main__":
        start()
        with collector(linger=0.2) as handle:
            space = {{"lr": tune.grid_search([0.1, 0.2, 0.3]), "handle": handle}}
            settings = tune.RunConfig(storage_path={str(tmp_path / "tune")!r}, verbose=0)
            tune.Tuner(trial, param_space=space, run_config=settings).fit()
        ray.shutdown()
    """
    )
    run_script(bare, tmp_path, script)
    runs = bare.gateway.backend.runs.values()  # type: ignore[attr-defined]
    assert len(runs) == 3
    for run in runs:
        check(run, 1)


# ------------------------------------------------------------------ torch, Dask, loky, gunicorn


@needs("torch")
@pytest.mark.parametrize("by", ["group", "store"])
def test_torch_ranks(bare: LocalPlatform, tmp_path: Path, by: str) -> None:
    """Four gloo ranks: metrics have the rank before them, params are rank 0's."""
    script = f"""
    import torch.distributed as dist
    import torch.multiprocessing as mp
    from adp_async.integrations.torch import shared

    def train(rank, port):
        os.environ |= {{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}}
        store = dist.TCPStore("127.0.0.1", port, 4, rank == 0)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=4)
        run = owner() if rank == 0 else None
        kept = store if "{by}" == "store" else None
        with shared(run, store=kept, listen="127.0.0.1") as mine:
            mine.log_param("ranks", 4)
            for step in range(100):
                mine.log_metric("w0", step * 0.5, step)
        if run is not None:
            run.finish()
        dist.barrier()
        dist.destroy_process_group()

    if __name__ == "__main__":
        mp.spawn(train, args=({free_port()},), nprocs=4)
    """
    run_script(bare, tmp_path, script)
    run = only_run(bare)
    counts = Counter((metric.key, metric.step) for metric in run.metrics)
    assert set(counts) == {(f"rank{n}/w0", step) for n in range(4) for step in range(POINTS)}
    assert set(counts.values()) == {1}
    assert run.params == [("ranks", "4")]
    assert run.info["status"] == "FINISHED"


@needs("distributed")
def test_dask_workers(bare: LocalPlatform, tmp_path: Path) -> None:
    """Worker processes of a local cluster."""
    script = """
    from distributed import Client, LocalCluster

    if __name__ == "__main__":
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            with Client(cluster) as client, owner() as run, run.shared("127.0.0.1") as handle:
                client.gather(client.map(lambda n: log(handle, n), range(6), pure=False))
    """
    run_script(bare, tmp_path, script)
    check(only_run(bare), 6)


@needs("joblib")
def test_loky(bare: LocalPlatform, tmp_path: Path) -> None:
    """joblib's processes, which live on and are used again."""
    script = """
    from joblib import Parallel, delayed

    if __name__ == "__main__":
        with owner() as run, run.shared() as handle:
            Parallel(n_jobs=2)(delayed(log)(handle, n) for n in range(6))
    """
    run_script(bare, tmp_path, script)
    check(only_run(bare), 6)


@needs("gunicorn")
def test_gunicorn_with_preload(bare: LocalPlatform, tmp_path: Path) -> None:
    """Workers are forked after the application was imported; each request logs, SIGTERM ends."""
    (tmp_path / "served.py").write_text(
        textwrap.dedent(HEAD)
        + textwrap.dedent("""
            run = owner()
            shared = run.shared()
            handle = shared.open()

            def app(environ, start_response):
                number = int(environ["QUERY_STRING"])
                with handle.attach() as mine:
                    mine.log_metric(f"w{number // 100}", 0.5, number % 100)
                start_response("200 OK", [("content-type", "text/plain")])
                return [str(os.getpid()).encode()]
            """)
    )
    (tmp_path / "settings.py").write_text(
        "def on_exit(server):\n"
        "    import served\n"
        "    served.shared.close()\n"
        "    served.run.finish()\n"
    )
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "gunicorn", "--preload", "-w", "2"]
    command += ["-b", address, "-c", "settings.py", "served:app"]
    env = environment(bare) | {
        "PYTHONPATH": os.pathsep.join([sys.path[0], *sys.path[1:], str(tmp_path)])
    }
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(command, env=env, cwd=tmp_path, stderr=log)
    try:
        deadline = time.monotonic() + 120
        processes = set()
        for number in range(2 * POINTS):
            while True:
                try:
                    url = f"http://{address}/?{number}"
                    with urllib.request.urlopen(url, timeout=60) as answer:
                        processes.add(answer.read())
                    break
                except OSError:
                    assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                    time.sleep(0.1)
        process.terminate()
        assert process.wait(40) == 0
    finally:
        process.kill()
        log.close()
    check(only_run(bare), 2)
