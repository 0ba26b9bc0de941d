package usage

import (
	"testing"
	"time"
)

func TestPeriodStrings(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		day  int32
		want string // empty: no day
	}{
		"a day":                    {20261123, "2026-11-23"},
		"a leap day":               {20280229, "2028-02-29"},
		"the last day":             {99991231, "9999-12-31"},
		"no leap year":             {20270229, ""},
		"a month that is too high": {20261301, ""},
		"a day of none":            {20261100, ""},
		"none":                     {0, ""},
		"less than none":           {-20261123, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, ok := DayString(tc.day)
			if got != tc.want || ok != (tc.want != "") {
				t.Fatalf("DayString(%d) = %q, %v", tc.day, got, ok)
			}
			if !ok {
				return
			}
			if back, ok := ParseDay(got); !ok || back != tc.day {
				t.Errorf("ParseDay(%q) = %d, %v", got, back, ok)
			}
			month, ok := MonthString(tc.day / 100)
			if !ok || month != tc.want[:7] {
				t.Errorf("MonthString(%d) = %q, %v", tc.day/100, month, ok)
			}
			if back, ok := ParseMonth(month); !ok || back != tc.day/100 {
				t.Errorf("ParseMonth(%q) = %d, %v", month, back, ok)
			}
		})
	}
	for _, bad := range []string{"", "2026-11", "2026-11-23T00:00:00Z", "2026-13-01", "26-11-23"} {
		if day, ok := ParseDay(bad); ok {
			t.Errorf("ParseDay(%q) = %d", bad, day)
		}
	}
	for _, bad := range []string{"", "2026-11-23", "2026-13", "2026"} {
		if month, ok := ParseMonth(bad); ok {
			t.Errorf("ParseMonth(%q) = %d", bad, month)
		}
	}
	for _, bad := range []int32{0, -1, 202600, 202613, 21474836, 2147483647} {
		if s, ok := MonthString(bad); ok {
			t.Errorf("MonthString(%d) = %q", bad, s)
		}
	}
}

func TestPeriodsOfAMoment(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		zone, now      string
		day, dayEnd    string
		month, monthTo string
	}{
		"in UTC":                                {"UTC", "2026-11-23T12:00:00Z", "2026-11-23", "2026-11-24T00:00:00Z", "2026-11", "2026-12-01T00:00:00Z"},
		"the first moment of a year":            {"UTC", "2027-01-01T00:00:00Z", "2027-01-01", "2027-01-02T00:00:00Z", "2027-01", "2027-02-01T00:00:00Z"},
		"the last moment of a year":             {"UTC", "2026-12-31T23:59:59.999999999Z", "2026-12-31", "2027-01-01T00:00:00Z", "2026-12", "2027-01-01T00:00:00Z"},
		"a leap February":                       {"UTC", "2028-02-28T12:00:00Z", "2028-02-28", "2028-02-29T00:00:00Z", "2028-02", "2028-03-01T00:00:00Z"},
		"where it is tomorrow already":          {"Asia/Tokyo", "2026-11-30T15:00:00Z", "2026-12-01", "2026-12-01T15:00:00Z", "2026-12", "2026-12-31T15:00:00Z"},
		"a day of 23 hours":                     {"Europe/Berlin", "2026-03-28T23:00:00Z", "2026-03-29", "2026-03-29T22:00:00Z", "2026-03", "2026-03-31T22:00:00Z"},
		"a day of 25 hours":                     {"Europe/Berlin", "2026-10-24T22:00:00Z", "2026-10-25", "2026-10-25T23:00:00Z", "2026-10", "2026-10-31T23:00:00Z"},
		"before a midnight that is skipped":     {"Africa/Cairo", "2023-04-27T20:00:00Z", "2023-04-27", "2023-04-27T22:00:00Z", "2023-04", "2023-04-30T21:00:00Z"},
		"a day that begins at one":              {"Africa/Cairo", "2023-04-27T22:00:00Z", "2023-04-28", "2023-04-28T21:00:00Z", "2023-04", "2023-04-30T21:00:00Z"},
		"before a midnight that comes twice":    {"America/Havana", "2026-10-31T20:00:00Z", "2026-10-31", "2026-11-01T04:00:00Z", "2026-10", "2026-11-01T04:00:00Z"},
		"between the two midnights":             {"America/Havana", "2026-11-01T04:30:00Z", "2026-11-01", "2026-11-02T05:00:00Z", "2026-11", "2026-12-01T05:00:00Z"},
		"a date that goes back for an hour":     {"America/Goose_Bay", "2010-11-07T03:30:00Z", "2010-11-06", "2010-11-07T04:00:00Z", "2010-11", "2010-12-01T04:00:00Z"},
		"before a day that the zone never had":  {"Pacific/Apia", "2011-12-30T00:00:00Z", "2011-12-29", "2011-12-30T10:00:00Z", "2011-12", "2011-12-31T10:00:00Z"},
		"the day after one that it never had":   {"Pacific/Apia", "2011-12-30T10:00:00Z", "2011-12-31", "2011-12-31T10:00:00Z", "2011-12", "2011-12-31T10:00:00Z"},
		"a zone that is half an hour off":       {"Asia/Kolkata", "2026-11-23T18:29:59Z", "2026-11-23", "2026-11-23T18:30:00Z", "2026-11", "2026-11-30T18:30:00Z"},
		"fractions of a second before midnight": {"UTC", "2026-11-23T23:59:59.5Z", "2026-11-23", "2026-11-24T00:00:00Z", "2026-11", "2026-12-01T00:00:00Z"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			zone, err := time.LoadLocation(tc.zone)
			if err != nil {
				t.Fatal(err)
			}
			now, err := time.Parse(time.RFC3339Nano, tc.now)
			if err != nil {
				t.Fatal(err)
			}
			day, month := DayOf(now, zone), MonthOf(now, zone)
			if got := day.End.UTC().Format(time.RFC3339Nano); day.Name != tc.day || got != tc.dayEnd {
				t.Errorf("day %s until %s, want %s until %s", day.Name, got, tc.day, tc.dayEnd)
			}
			if got := month.End.UTC().Format(time.RFC3339Nano); month.Name != tc.month || got != tc.monthTo {
				t.Errorf("month %s until %s, want %s until %s", month.Name, got, tc.month, tc.monthTo)
			}
			if !day.End.After(now) || DayOf(day.End, zone).Name == day.Name {
				t.Errorf("the day's end is in it")
			}
		})
	}
}
