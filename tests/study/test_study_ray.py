"""Studies on a cluster of two machines, which Ray makes of this one."""

import os
import threading
import time
from pathlib import Path

import errands
import pytest
from test_study_jobs import Notes, fail, leave

from prunekit.errors import InputError
from prunekit.study import run_study
from prunekit.study.jobs import Job
from prunekit.study.ray_cluster import Mailbox, RayCluster
from tiny_study import table, tiny

ray = pytest.importorskip("ray", reason="needs the extra prunekit[ray]")
cluster_utils = pytest.importorskip("ray.cluster_utils")

FOLDERS = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
MACHINE = {"num_cpus": 1, "object_store_memory": 80_000_000}


@pytest.fixture(scope="module")
def cluster():
    """A machine for this process, and two that do the work."""
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={**MACHINE, "num_cpus": 0})
    for _ in range(2):
        made.add_node(**MACHINE)
    known = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
    variables = {"PYTHONPATH": os.pathsep.join([*FOLDERS, *known])}
    ray.init(address=made.address, log_to_driver=False, runtime_env={"env_vars": variables})
    yield made
    ray.shutdown()
    made.shutdown()


def test_whatever_becomes_of_a_task_the_others_are_done(tmp_path, cluster, caplog):
    jobs = [
        leave(tmp_path, "first"),
        leave(tmp_path, "second", after=("first",)),
        fail("unpicklable"),
        fail("stubborn"),
        fail("interrupt"),
        Job("warn", errands.warn, ()),
        Job("give", errands.give_back_a_function, ()),
        Job("unsendable", errands.leave, (threading.Lock(), "x")),
        Job("hang", errands.hang, (tmp_path, "hang")),
        leave(tmp_path, "heir", after=("hang",)),
        Job("dies once", errands.die_at_first, (tmp_path, "once")),
        fail("die"),
    ]
    notes = Notes()
    failures = {failure.name: failure.message for failure in RayCluster(attempts=2).run(jobs, notes, 2.0)}
    assert failures.pop("unsendable").startswith("TypeError: cannot pickle")
    assert failures == {
        "unpicklable": "UnpicklableError: first line",
        "stubborn": "StubbornError, whose text cannot be read",
        "interrupt": "KeyboardInterrupt:",
        "hang": "took longer than 2 s, the limit of a cell",
        "heir": "not run, because hang failed",
        "die": "its process came to an end",
    }
    assert sorted(notes.lost_jobs) == ["die", "dies once"]
    assert set(notes.ended) == {job.name for job in jobs}
    assert "a state is damaged" in [record.getMessage() for record in caplog.records]
    assert notes.fractions["hang"] == [0.0]
    process, threads = (tmp_path / "first").read_text().split()
    assert process != str(os.getpid())
    assert threads == "1"


def test_a_study_has_the_same_results_as_in_this_process(tmp_path, cluster, no_report):
    study = tiny()
    run_study(study, tmp_path / "here", workers=1)
    run_study(study, tmp_path / "there", executor=RayCluster())
    for name in ("results.csv", "layers.csv"):
        assert table(tmp_path / "there" / name) == table(tmp_path / "here" / name)


def test_a_job_goes_on_elsewhere_when_its_machine_is_gone(tmp_path, cluster):
    def end_the_machine():
        while not (tmp_path / "place").exists():
            time.sleep(0.1)
        time.sleep(0.2)
        lost = (tmp_path / "place").read_text()
        cluster.remove_node(next(node for node in cluster.worker_nodes if node.node_id == lost))

    other = threading.Thread(target=end_the_machine)
    other.start()
    notes = Notes()
    job = Job("moves", errands.hang_at_first, (tmp_path, "place"))
    assert RayCluster().run([job], notes, None) == []
    other.join()
    first, second = (tmp_path / "place").read_text().split()
    assert first != second
    assert notes.lost_jobs == ["moves"]


def test_what_no_machine_has_is_refused_before_anything_is_written(tmp_path, cluster):
    with pytest.raises(
        InputError, match=r"a job takes cpus = 64.*no machine of the cluster has more than 1 CPU"
    ):
        run_study(tiny(), tmp_path / "s", executor=RayCluster(cpus=64))
    with pytest.raises(InputError, match="workers are processes of this machine"):
        run_study(tiny(), tmp_path / "s", executor=RayCluster(), workers=2)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "wrong", [{"cpus": 0}, {"cpus": "1"}, {"gpus": -1}, {"memory": 0}, {"memory": 1.5}, {"attempts": 0}]
)
def test_wrong_numbers_are_named(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))} = "):
        RayCluster(**wrong)


def test_a_mailbox_keeps_the_newest_of_how_far_a_task_is():
    mailbox = Mailbox()
    for message in (("a", 0, "begun"), ("a", 0, 0.0), ("b", 0, 0.25), ("a", 0, 0.5)):
        mailbox.put(message)
    assert mailbox.take() == [("a", 0, "begun"), ("a", 0, 0.5), ("b", 0, 0.25)]
    assert mailbox.take() == []
