package usage

import (
	"fmt"
	"time"
)

// DayString writes a day's number, such as 20261123, as 2026-11-23; false: it is no day.
func DayString(day int32) (string, bool) {
	y, m, d := int(day/10000), time.Month(day/100%100), int(day%100)
	t := time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
	if day <= 0 || t.Year() != y || t.Month() != m || t.Day() != d {
		return "", false
	}
	return fmt.Sprintf("%04d-%02d-%02d", y, m, d), true
}

// MonthString writes a month's number, such as 202611, as 2026-11; false: it is no month.
func MonthString(month int32) (string, bool) {
	s, ok := DayString(month*100 + 1)
	if month <= 0 || month > 999912 || !ok {
		return "", false
	}
	return s[:len("2026-11")], true
}

// ParseDay is the inverse of DayString.
func ParseDay(s string) (int32, bool) {
	t, err := time.Parse("2006-01-02", s)
	if err != nil || t.Year() == 0 {
		return 0, false
	}
	return dayNumber(t), true
}

// ParseMonth is the inverse of MonthString.
func ParseMonth(s string) (int32, bool) {
	day, ok := ParseDay(s + "-01")
	return day / 100, ok
}

func dayNumber(t time.Time) int32 {
	y, m, d := t.Date()
	return int32(y*10000 + int(m)*100 + d) // four digits of a year fit by far
}

// Period is a calendar day or month in some time zone.
type Period struct {
	Name string    // 2026-11-23 or 2026-11
	End  time.Time // the first moment after the one asked about that is not in it
}

// DayOf is the day that the moment falls into.
func DayOf(now time.Time, zone *time.Location) Period {
	now = now.In(zone)
	return Period{now.Format("2006-01-02"), nextDay(now)}
}

// MonthOf is the month that the moment falls into.
func MonthOf(now time.Time, zone *time.Location) Period {
	now = now.In(zone)
	end := nextDay(now)
	for dayNumber(end)/100 == dayNumber(now)/100 {
		end = nextDay(end)
	}
	return Period{now.Format("2006-01"), end}
}

// nextDay is the first moment after t with another date. That is not always midnight, which some zones skip, or have twice, when they
// change their clocks; nor does every zone have every day.
func nextDay(t time.Time) time.Time {
	today := dayNumber(t)
	for {
		y, m, d := t.Date()
		// Between two changes of the clocks, time passes as it does in UTC.
		wall := time.Date(y, m, d, t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), time.UTC)
		midnight := t.Add(time.Date(y, m, d+1, 0, 0, 0, 0, time.UTC).Sub(wall))
		_, change := t.ZoneBounds()
		switch {
		case change.IsZero() || midnight.Before(change):
			return midnight
		case dayNumber(change) != today:
			return change
		}
		t = change
	}
}
