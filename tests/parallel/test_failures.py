"""A rank that raises, dies or hangs ends the job, and nothing stays behind."""

import time
from concurrent.futures import ThreadPoolExecutor

from tests.parallel.processes import EARLY_DETECTION, HERE, job_members, run_msrun

NOTICED_WITHIN = 20.0
MESSAGES = {"raise": "rank 1 has had enough", "die": "exit with exception"}


def launch(how, directory, seconds, environment):
    arguments = [how, str(directory)]
    finished = run_msrun(HERE / "failing_worker.py", 2, arguments, directory, seconds, environment)
    return finished, time.time()


def test_a_lost_rank_ends_the_job_with_a_code_and_a_message(tmp_path_factory):
    directories = {how: tmp_path_factory.mktemp(how) for how in MESSAGES}
    with ThreadPoolExecutor() as pool:
        jobs = {
            how: pool.submit(launch, how, directory, 120, EARLY_DETECTION)
            for how, directory in directories.items()
        }
    for how, job in jobs.items():
        finished, ended = job.result()
        assert finished.code not in (0, None), finished.output
        assert MESSAGES[how] in finished.output
        assert job_members(finished.job) == []
        assert ended - float((directories[how] / "failed").read_text()) < NOTICED_WITHIN


def test_a_hanging_job_is_killed_as_a_whole(tmp_path):
    finished = run_msrun(
        HERE / "failing_worker.py",
        2,
        ["hang", str(tmp_path)],
        tmp_path,
        120,
        enough=lambda printed: printed.count("hanging") >= 2,
    )
    assert finished.code is None
    assert finished.output.count("hanging") >= 2
    assert job_members(finished.job) == []
