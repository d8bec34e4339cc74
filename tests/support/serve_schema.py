"""Requests made from the server's own OpenAPI, right and wrong ones, by schemathesis."""

from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

NEVER = ("Traceback", "site-packages", '.py"')
"""What no answer says."""


def ask_by_schema(url: str, examples: int) -> tuple[int, list[str]]:
    """So many requests to each path, of each kind; how many in all, and what was wrong."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    asked = 0
    faults: list[str] = []
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            def check(case: Any) -> None:
                nonlocal asked
                asked += 1
                answer = case.call(timeout=120)
                text = answer.content.decode("utf-8", "replace")
                if answer.status_code >= 500 or any(word in text for word in NEVER):
                    asked_for = f"{case.method} {case.formatted_path} {case.body!r:.500}"
                    faults.append(f"{asked_for}: {text[:200]}")

            try:
                strategy = operation.as_strategy(generation_mode=mode)
                given(strategy)(
                    settings(
                        max_examples=examples,
                        database=None,
                        deadline=None,
                        phases=[Phase.generate],
                        derandomize=True,
                        suppress_health_check=list(HealthCheck),
                    )(check)
                )()
            except (
                Unsatisfiable,
                schemathesis.errors.SchemathesisError,
            ):  # nothing wrong can be sent there
                continue
    return asked, faults
