package ledger

import "time"

// calendar is the day and the month that a moment is in. It is reckoned anew when the moment leaves the day, or the zone is another.
type calendar struct {
	zone                 *time.Location // nil: UTC
	now                  time.Time
	day, month           int32 // 20261123, 202611
	dayStart, dayEnd     time.Time
	monthStart, monthEnd time.Time
}

// set moves the calendar to a moment. nil is UTC.
func (c *calendar) set(now time.Time, zone *time.Location) {
	if zone == nil {
		zone = time.UTC
	}
	if zone == c.zone && !now.Before(c.dayStart) && now.Before(c.dayEnd) {
		c.now = now
		return
	}
	y, m, d := now.In(zone).Date()
	*c = calendar{
		zone: zone, now: now,
		day: int32(y)*10_000 + int32(m)*100 + int32(d), month: int32(y)*100 + int32(m),
		dayStart: startOf(y, m, d, zone), dayEnd: startOf(y, m, d+1, zone),
		monthStart: startOf(y, m, 1, zone), monthEnd: startOf(y, m+1, 1, zone),
	}
}

// startOf is the first moment of a date. Where a day begins later than midnight, since the clocks go forward then, time.Date may give a
// moment of the day before. Where midnight comes twice, it gives the first.
func startOf(y int, m time.Month, d int, zone *time.Location) time.Time {
	start := time.Date(y, m, d, 0, 0, 0, 0, zone)
	want := time.Date(y, m, d, 12, 0, 0, 0, time.UTC).Day()
	for start.Day() != want {
		_, end := start.ZoneBounds()
		if end.IsZero() || !end.After(start) {
			return start
		}
		start = end
	}
	return start
}
