"""When a schedule starts runs: five cron fields and a time zone, as Vertex AI and as Kubeflow want them.

    cron = Cron.parse("0 3 * * MON", "Europe/Berlin")
    cron.to_vertex()                # TZ=Europe/Berlin 0 3 * * 1
    cron.next_times(3)              # the next three starts, in that time zone

A field is `*`, a value, a range `1-5`, a step `*/15` or `8-18/2`, or a list of these, comma-separated. Where both
the day of the month and the day of the week are restricted, a day needs to match one of them, as everywhere in cron.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone

from umx_model.errors import InputError

_ORDER = "minute hour day-of-month month day-of-week"
_EXAMPLE = "0 3 * * 1 for Mondays at 3:00"
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_ITEM = re.compile(r"(?P<all>\*)(?:/(?P<all_step>\d+))?|(?P<low>\w+)(?:-(?P<high>\w+)(?:/(?P<step>\d+))?)?")
# 29 February may be eight years away, around 2100.
_HORIZON = timedelta(days=9 * 366)


@dataclass(frozen=True)
class _Kind:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()  # of low, low + 1, ...


_KINDS = (
    _Kind("minute", 0, 59),
    _Kind("hour", 0, 23),
    _Kind("day of the month", 1, 31),
    _Kind("month", 1, 12, _MONTHS),
    _Kind("day of the week", 0, 7, _DAYS),
)


@dataclass(frozen=True)
class _Field:
    """A field of a cron expression: its values, and how it is written without names."""

    text: str
    values: frozenset[int]

    @property
    def any(self) -> bool:
        return self.text.startswith("*")

    @classmethod
    def of(cls, values: set[int], like: _Field) -> _Field:
        """Another field's replacement by values, which stays `*` where that was."""
        return like if values == like.values else cls(",".join(map(str, sorted(values))), frozenset(values))


@dataclass(frozen=True)
class Cron:
    """When a schedule starts runs.

    Attributes:
        fields: minute, hour, day of the month, month, day of the week.
        time_zone: of these, as `Europe/Berlin`.
    """

    fields: tuple[_Field, _Field, _Field, _Field, _Field]
    time_zone: str

    @classmethod
    def parse(cls, text: str, time_zone: str = "UTC") -> Cron:
        """Read what a user wrote.

        Args:
            text: five fields.
            time_zone: name from the IANA database.

        Raises:
            InputError: it cannot be read, never comes, or there is no such time zone.
        """
        words = text.split()
        if len(words) != 5:
            seconds = "; leave out the seconds" if len(words) == 6 else ""
            raise InputError(
                f"--cron {text!r}: expected five fields ({_ORDER}), as {_EXAMPLE}; found {len(words)}{seconds}"
            )
        try:
            zoneinfo.ZoneInfo(time_zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise InputError(
                f"--time-zone {time_zone!r}: no such time zone; expected a name as Europe/Berlin or UTC"
            ) from None
        minute, hour, day, month, weekday = (_read(word, kind, text) for word, kind in zip(words, _KINDS, strict=True))
        cron = cls((minute, hour, day, month, weekday), time_zone)
        if not cron.next_times(1):
            raise InputError(f"--cron {text!r}: never comes; month {month.text} has no day {day.text}")
        return cron

    @property
    def text(self) -> str:
        """The five fields, with numbers for names."""
        return " ".join(field.text for field in self.fields)

    def to_vertex(self) -> str:
        """Return the expression as Vertex AI reads it."""
        return f"TZ={self.time_zone} {self.text}"

    def to_kubeflow(self, installation_zone: str = "UTC") -> str:
        """Return the expression as Kubeflow reads it: six fields, seconds first, and no time zone.

        Kubeflow's schedules know one time zone for all, that of the installation, so times are moved there.

        Args:
            installation_zone: `CRON_SCHEDULE_TIMEZONE` of its schedule controller, UTC unless somebody changed it.

        Raises:
            InputError: the times cannot be said in that time zone, as with summer time in only one of the two.
        """
        if self.time_zone == installation_zone:
            return f"0 {self.text}"
        return f"0 {self._moved(installation_zone).text}"

    def next_times(self, count: int, after: datetime | None = None) -> list[datetime]:
        """Return the next starts, in the time zone of the fields; fewer where there are fewer within nine years.

        Times that summer time skips are left out; of those that it repeats the first is taken.

        Args:
            count: how many.
            after: now if None.
        """
        zone = zoneinfo.ZoneInfo(self.time_zone)
        start = (after or datetime.now(timezone.utc)).astimezone(zone)
        times: list[datetime] = []
        day = start.date()
        while len(times) < count and day < start.date() + _HORIZON:
            times += [time for time in self._times_of(day, zone) if time > start]
            day += timedelta(days=1)
        return times[:count]

    def _times_of(self, day: date, zone: zoneinfo.ZoneInfo) -> Iterator[datetime]:
        minutes, hours, days, months, weekdays = self.fields
        matches = (day.day in days.values, day.isoweekday() % 7 in weekdays.values)
        on_this_day = all(matches) if days.any or weekdays.any else any(matches)
        if day.month not in months.values or not on_this_day:
            return
        for hour in sorted(hours.values):
            for minute in sorted(minutes.values):
                time = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone)
                if time.astimezone(timezone.utc).astimezone(zone).replace(tzinfo=None) == time.replace(tzinfo=None):
                    yield time

    def _moved(self, zone: str) -> Cron:
        """Return the same times in another time zone, if the two are always equally far apart."""
        utc = datetime.now(timezone.utc)
        distances = {_distance(self.time_zone, zone, utc + timedelta(days=7 * week)) for week in range(53)}
        if len(distances) > 1:
            raise self._not_in(zone, f"{self.time_zone} is not always equally far from {zone} (summer time)")
        minutes = int(distances.pop() / timedelta(minutes=1))
        minute, hour, day, month, weekday = self.fields
        moved = {divmod(value + minutes, 60) for value in minute.values}
        carries = {carry for carry, _ in moved}
        if len(carries) > 1 and not len(hour.values) == 24:
            raise self._not_in(zone, "the minutes would fall into different hours")
        times = {divmod(value + carry, 24) for value in hour.values for carry in carries}
        shifts = {shift for shift, _ in times}
        every_day = day.any and weekday.any and len(day.values) == 31 and len(weekday.values) == 7
        if shifts != {0} and not every_day:
            # Days of the week go round; days of a month do not.
            if len(shifts) > 1 or not (day.text == "*" and month.text == "*"):
                raise self._not_in(zone, "the times would fall on other days")
            [shift] = shifts
            weekday = _Field.of({(value + shift) % 7 for value in weekday.values}, weekday)
        elif shifts != {0} and month.text != "*":
            raise self._not_in(zone, "the times would fall in other months")
        hours, minutes_ = {value for _, value in times}, {value for _, value in moved}
        return Cron((_Field.of(minutes_, minute), _Field.of(hours, hour), day, month, weekday), zone)

    def _not_in(self, zone: str, reason: str) -> InputError:
        return InputError(
            f"--time-zone {self.time_zone}: this Kubeflow keeps the time of {zone}, and {reason}; give the times "
            f"in {zone} (--time-zone {zone}), or have its administrator set CRON_SCHEDULE_TIMEZONE, and name that as "
            "kubeflow_time_zone in the settings that you compile with"
        )


def split_vertex(text: str) -> tuple[str, str]:
    """Return the five fields and the time zone of what Vertex AI calls a cron."""
    prefix, _, fields = text.partition(" ")
    return (fields, prefix.split("=", 1)[1]) if re.match(r"(CRON_)?TZ=", prefix) else (text, "UTC")


def _distance(here: str, there: str, time: datetime) -> timedelta:
    """Return how much later clocks show there than here."""
    offset, other = (time.astimezone(zoneinfo.ZoneInfo(name)).utcoffset() or timedelta(0) for name in (here, there))
    return other - offset


def _read(word: str, kind: _Kind, expression: str) -> _Field:
    """Read one field."""
    values: set[int] = set()
    texts = []
    for item in word.split(","):
        found = _ITEM.fullmatch(item)
        if found is None:
            hint = "; a step needs a range or *, as in */15" if "/" in item else ""
            raise InputError(f"--cron {expression!r}: {kind.name} {item!r} cannot be read{hint}")
        step_text = found["all_step"] or found["step"]
        step = 1 if step_text is None else int(step_text)
        if found["all"]:
            low, high = kind.low, kind.high
        else:
            low = _value(found["low"], kind, expression)
            high = _value(found["high"], kind, expression) if found["high"] else low
        if step < 1 or low > high:
            problem = "a step is 1 or more" if step < 1 else "the range ends before it begins"
            raise InputError(f"--cron {expression!r}: {kind.name} {item!r}: {problem}")
        chosen = range(low, high + 1, step)
        values |= set(chosen)
        texts.append(_written(found, low, high, step_text, kind))
    if kind.high == 7:  # Sunday is 0 and 7
        values = {value % 7 for value in values}
    return _Field(",".join(texts), frozenset(values))


def _written(found: re.Match[str], low: int, high: int, step: str | None, kind: _Kind) -> str:
    """Return an item with numbers for names, and without 7 for Sunday, which Kubeflow does not know."""
    if found["all"]:
        return found[0]
    if kind.high == 7 and high == 7:
        return ",".join(str(value % 7) for value in range(low, high + 1, int(step or 1)))
    text = f"{low}-{high}" if found["high"] else str(low)
    return f"{text}/{step}" if step else text


def _value(text: str, kind: _Kind, expression: str) -> int:
    if text.upper() in kind.names:
        return kind.low + kind.names.index(text.upper())
    if not text.isascii() or not text.isdigit() or not kind.low <= int(text) <= kind.high:
        names = f" or {kind.names[0]} to {kind.names[-1]}" if kind.names else ""
        raise InputError(f"--cron {expression!r}: {kind.name} {text!r}: expected {kind.low} to {kind.high}{names}")
    return int(text)
