"""A few hundred of the requests of benchmarks/serving_hostile.py, which sends thousands."""

import contextlib
import io

from benchmarks import serving_hostile
from empathy_jax import chain_of_empathy
from tests.serving.served import CHAIN, ScriptedBatch, make_tokenizer, serve


def test_hostile_requests_are_refused_and_leave_nothing_behind():
    tokenizer = make_tokenizer()
    batch = ScriptedBatch(tokenizer, chain_of_empathy.render(CHAIN))
    log = io.StringIO()
    with contextlib.redirect_stdout(log), serve(batch, tokenizer) as served:
        found = serving_hostile.run(served.port, 300, every=50)
        assert found["requests"] >= 300 and len(found["kinds"]) == 7
        assert {"200", "400", "413"} <= found["statuses"].keys()
        assert served.metrics.total("failures") == 0 and served.worker.failure is None
    assert '"route"' in log.getvalue() and "alert(1)" not in log.getvalue()
