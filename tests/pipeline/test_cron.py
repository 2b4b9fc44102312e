"""Cron expressions: what is refused, when they come, and how the platforms are told."""

from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from pipeline.cron import Cron, split_vertex
from umx_model.errors import InputError

NOON = datetime(2025, 6, 18, 12, tzinfo=timezone.utc)  # a Wednesday


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("* * *", "five fields .* found 3"),
        ("", "five fields .* found 0"),
        ("0 0 3 * * 1", "found 6; leave out the seconds"),
        ("@daily", "five fields"),
        ("60 3 * * *", "minute '60': expected 0 to 59"),
        ("0 24 * * *", "hour '24': expected 0 to 23"),
        ("0 3 0 * *", "day of the month '0': expected 1 to 31"),
        ("0 3 * 13 *", "month '13': expected 1 to 12 or JAN to DEC"),
        ("0 3 * * 8", "day of the week '8': expected 0 to 7 or SUN to SAT"),
        ("0 3 * * MONDAY", "day of the week 'MONDAY': expected 0 to 7 or SUN to SAT"),
        ("0 3 * * ?", "day of the week '\\?' cannot be read"),
        ("5/15 3 * * *", "minute '5/15' cannot be read; a step needs a range"),
        ("*/0 3 * * *", "a step is 1 or more"),
        ("0 5-3 * * *", "hour '5-3': the range ends before it begins"),
        ("0 3 , * *", "day of the month '' cannot be read"),
        ("-1 3 * * *", "minute '-1' cannot be read"),
        ("² 3 * * *", "minute '²'"),
        ("0 3 30 2 *", "never comes; month 2 has no day 30"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as refusal:
        Cron.parse(text)
    assert str(refusal.value).startswith(f"--cron {text!r}: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("zone", ["Europe/Atlantis", "", "Europe", "../etc/passwd", "CET+1"])
def test_unknown_time_zones_are_refused(zone: str) -> None:
    with pytest.raises(InputError, match="no such time zone; expected a name as Europe/Berlin"):
        Cron.parse("0 3 * * 1", zone)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 3 * * 1", ["06-23 03:00", "06-30 03:00"]),
        ("0 3 * * mon-wed", ["06-23 03:00", "06-24 03:00"]),
        ("*/30 12 * * *", ["06-18 12:30", "06-19 12:00"]),
        ("0 12 * * *", ["06-19 12:00", "06-20 12:00"]),  # not now, but next
        ("15 8-18/5 * * *", ["06-18 13:15", "06-18 18:15"]),
        ("0 0 1 JAN,jul *", ["07-01 00:00", "01-01 00:00"]),
        ("0 0 13 * FRI", ["06-20 00:00", "06-27 00:00"]),  # the 13th or a Friday
        ("0 0 20-22 6 SAT,SUN", ["06-20 00:00", "06-21 00:00"]),
        ("0 0 */2 * SUN", ["06-29 00:00", "07-13 00:00"]),  # an odd day and a Sunday
        ("0 0 * * 7", ["06-22 00:00", "06-29 00:00"]),
        ("0 0 * * 5-7", ["06-20 00:00", "06-21 00:00"]),
        ("0 0 29 2 *", ["02-29 00:00", "02-29 00:00"]),
    ],
)
def test_next_times(text: str, expected: list[str]) -> None:
    times = Cron.parse(text).next_times(2, NOON)
    assert [time.strftime("%m-%d %H:%M") for time in times] == expected


def test_times_are_of_the_time_zone_summer_and_winter() -> None:
    cron = Cron.parse("30 2 * * *", "Europe/Berlin")
    spring = cron.next_times(2, datetime(2025, 3, 29, 12, tzinfo=timezone.utc))
    # 30 March has no 2:30 there.
    assert [time.isoformat() for time in spring] == ["2025-03-31T02:30:00+02:00", "2025-04-01T02:30:00+02:00"]
    autumn = cron.next_times(2, datetime(2025, 10, 25, 12, tzinfo=timezone.utc))
    # 26 October has it twice.
    assert [time.isoformat() for time in autumn] == ["2025-10-26T02:30:00+02:00", "2025-10-27T02:30:00+01:00"]


def test_vertex_gets_numbers_and_the_time_zone() -> None:
    told = Cron.parse("0  3 * mar-MAY Mon,7", "Europe/Berlin").to_vertex()
    assert told == "TZ=Europe/Berlin 0 3 * 3-5 1,0"
    assert split_vertex(told) == ("0 3 * 3-5 1,0", "Europe/Berlin")
    assert split_vertex("CRON_TZ=UTC 1 * * * *") == ("1 * * * *", "UTC")
    assert split_vertex("1 * * * *") == ("1 * * * *", "UTC")


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("0 3 * * MON", "UTC", "0 0 3 * * 1"),
        ("*/15 8-18/2 * * 6-7", "UTC", "0 */15 8-18/2 * * 6,0"),
        ("0 12 * * 1", "Asia/Tokyo", "0 0 3 * * 1"),
        ("0 3 * * 1", "Asia/Tokyo", "0 0 18 * * 0"),  # still Sunday in UTC
        ("0 23 * * SAT", "America/Bogota", "0 0 4 * * 0"),
        ("0 3 * * *", "Asia/Kolkata", "0 30 21 * * *"),
        ("0 * * * *", "Asia/Kolkata", "0 30 * * * *"),
        ("0,30 5 1 * *", "Etc/GMT-1", "0 0,30 4 1 * *"),
        ("0 3,15 * * *", "Asia/Tokyo", "0 0 6,18 * * *"),
    ],
)
def test_kubeflow_gets_seconds_and_times_of_its_own_zone(text: str, zone: str, expected: str) -> None:
    cron = Cron.parse(text, zone)
    assert cron.to_kubeflow() == expected
    seconds, *fields = expected.split()
    assert seconds == "0"
    there = Cron.parse(" ".join(fields)).next_times(30, NOON)
    assert [time.astimezone(ZoneInfo("UTC")) for time in cron.next_times(30, NOON)] == there


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("0 3 * * 1", "Europe/Berlin", r"not always equally far from UTC \(summer time\)"),
        ("0 3 1 * *", "Asia/Tokyo", "on other days"),
        ("0 3,15 * * 1", "Asia/Tokyo", "on other days"),
        ("0 3 * 6 1", "Asia/Tokyo", "on other days"),
        ("0 3 * 6 *", "Asia/Tokyo", "in other months"),
        ("0,45 3 * * *", "Asia/Kolkata", "into different hours"),
    ],
)
def test_what_kubeflow_cannot_be_told_is_refused(text: str, zone: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as refusal:
        Cron.parse(text, zone).to_kubeflow()
    assert "--time-zone UTC" in str(refusal.value)


def test_an_installation_may_keep_another_time() -> None:
    assert Cron.parse("0 3 * * 1", "Europe/Berlin").to_kubeflow("Europe/Berlin") == "0 0 3 * * 1"
    assert Cron.parse("0 3 * * 1", "Europe/Paris").to_kubeflow("Europe/Berlin") == "0 0 3 * * 1"


def test_now_is_where_one_begins_by_default() -> None:
    [time] = Cron.parse("* * * * *").next_times(1)
    assert timedelta(0) < time - datetime.now(timezone.utc) <= timedelta(minutes=1)
