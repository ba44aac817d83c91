from stream.replay.log import local_topic_id
from stream.runner.errors import StepFailed
from stream.stages.stage import Journal

JOURNAL = Journal("terminal-journal", local_topic_id("terminal-journal"), 0)


def test_only_a_failure_that_names_its_record_says_what_to_skip():
    assert "`fraud skip terminal-journal 0 74 --by WHO --why WHY`" in str(
        StepFailed(JOURNAL, 74, 74, ArithmeticError("x"))
    )
    of_a_batch = str(StepFailed(JOURNAL, 60, 74, ArithmeticError("x")))
    assert "terminal-journal[0]@60..74" in of_a_batch
    assert "fraud skip" not in of_a_batch, "74 may be sound"
