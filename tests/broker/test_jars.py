import hashlib
from pathlib import Path

import pytest

from stream.broker import jars
from stream.broker.errors import JarsRefused, JarsUnreachable

JAR = "org/example/thing/1.0/thing-1.0.jar"
GOOD = b"the jar that was tested"
SUMS = {JAR: hashlib.sha256(GOOD).hexdigest()}


def _put(root: Path, content: bytes) -> Path:
    jar = root / JAR
    jar.parent.mkdir(parents=True)
    jar.write_bytes(content)
    return jar


def _serve(monkeypatch: pytest.MonkeyPatch, content: bytes) -> list[str]:
    asked: list[str] = []

    def fetch(path, into, received):
        asked.append(path)
        received(len(content))
        return _put(into, content)

    monkeypatch.setattr(jars, "fetch", fetch)
    return asked


def test_recorded_sums_name_kafka_its_log_binding_and_no_host():
    recorded = jars.recorded_sums()
    assert f"org/apache/kafka/kafka_2.13/{jars.KAFKA_VERSION}/kafka_2.13-{jars.KAFKA_VERSION}.jar" in recorded
    assert any("slf4j-impl" in path for path in recorded)
    for path, digest in recorded.items():
        jars.maven_coordinate(path)
        assert len(bytes.fromhex(digest)) == 32
        assert ":" not in path


def test_a_good_jar_in_the_cache_is_used_without_any_download(tmp_path, monkeypatch):
    asked = _serve(monkeypatch, b"never")
    jar = _put(tmp_path, GOOD)
    assert jars.class_path(tmp_path, SUMS) == [jar]
    assert asked == []


def test_a_jar_changed_in_the_cache_is_refused(tmp_path):
    jar = _put(tmp_path, GOOD + b"!")
    with pytest.raises(JarsRefused, match="SHA-256") as refused:
        jars.class_path(tmp_path, SUMS)
    assert str(jar) in str(refused.value)


def test_a_download_with_another_sum_is_refused_and_never_reaches_the_cache(tmp_path, monkeypatch):
    _serve(monkeypatch, b"something else")
    with pytest.raises(JarsRefused):
        jars.class_path(tmp_path, SUMS)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_good_download_lands_in_the_cache_and_is_not_fetched_twice(tmp_path, monkeypatch):
    asked = _serve(monkeypatch, GOOD)
    assert jars.class_path(tmp_path, SUMS)[0].read_bytes() == GOOD
    jars.class_path(tmp_path, SUMS)
    assert asked == [JAR]


def test_no_network_says_what_is_needed(tmp_path, monkeypatch):
    settings = tmp_path / ".config" / "jgo.conf"
    settings.parent.mkdir()
    settings.write_text("[repositories]\ndead = http://127.0.0.1:9/maven\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(JarsUnreachable, match=r"127\.0\.0\.1:9/maven.*mirror"):
        jars.class_path(tmp_path / "cache", SUMS)
