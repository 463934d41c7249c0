"""A rank that raises, dies or hangs ends the job, and nothing stays behind."""

from concurrent.futures import ThreadPoolExecutor

from tests.parallel.processes import HERE, job_members, run_msrun

MESSAGES = {"raise": "rank 1 has had enough", "die": "exit with exception"}
MINDSPORES_OWN: dict[str, str] = {}  # its time until a rank counts as lost: half a minute


def launch(how, directory, **keywords):
    return run_msrun(HERE / "failing_worker.py", 2, [how], directory, **keywords)


def test_a_lost_rank_ends_the_job_with_a_code_and_a_message(tmp_path_factory):
    with ThreadPoolExecutor() as pool:
        jobs = {
            how: pool.submit(launch, how, tmp_path_factory.mktemp(how), environment=MINDSPORES_OWN)
            for how in MESSAGES
        }
    for how, job in jobs.items():
        finished = job.result()
        assert finished.code not in (0, None), finished.output
        assert MESSAGES[how] in finished.output
        assert job_members(finished.job) == []


def test_a_hanging_job_is_killed_as_a_whole(tmp_path):
    finished = launch("hang", tmp_path, enough=lambda printed: printed.count("hanging") >= 2)
    assert finished.code is None
    assert finished.output.count("hanging") >= 2
    assert job_members(finished.job) == []
