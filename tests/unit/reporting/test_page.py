"""JSON inside a page, the content policy, and the plotting library."""

import base64
import hashlib
import json

import pytest

from softlabel.pipeline.reporting.page import content_policy, script_json, vega_bundle


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "a & b", "\u2028\u2029", "'\"\\"])
def test_json_cannot_leave_its_element(text: str) -> None:
    written = script_json({text: [text]})
    assert not set(written) & set("<>&\u2028\u2029")
    assert json.loads(written) == {text: [text]}


def test_json_refuses_what_no_browser_reads() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        script_json({"value": float("nan")})


def test_policy_names_each_script_and_no_host() -> None:
    policy = content_policy("one()", "two()")
    digest = base64.b64encode(hashlib.sha256(b"two()").digest()).decode()
    assert f"'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert "unsafe-eval" not in policy


def test_the_library_is_one_closed_script() -> None:
    bundle = vega_bundle()
    assert "window.vegaEmbed" in bundle
    assert "</script" not in bundle.lower()
    assert "<!--" not in bundle
    assert bundle == vega_bundle()
