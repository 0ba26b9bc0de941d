package usage

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	usagev1 "github.com/latchkey-dev/latchkey/api/usage/v1"
	"github.com/latchkey-dev/latchkey/internal/ledger"
	"github.com/latchkey-dev/latchkey/internal/money"
)

// Row is an account of the ledger.
type Row = ledger.Row

// Totals are what an account used in one day or month.
type Totals = ledger.Totals

// maxIDBytes bounds an account's ID, as the ledger's journal does.
const maxIDBytes = 64

func encodeRows(rows []Row) []*usagev1.Row {
	out := make([]*usagev1.Row, 0, len(rows))
	for i := range rows {
		r := &rows[i]
		out = append(out, &usagev1.Row{
			Id: r.ID, Day: r.Day, Month: r.Month, DayUsage: encodeTotals(&r.DayUsage), MonthUsage: encodeTotals(&r.MonthUsage),
			LastUsed: encodeTime(r.LastUsed), BlockedSince: encodeTime(r.BlockedSince),
		})
	}
	return out
}

func encodeTotals(t *Totals) *usagev1.Totals {
	if *t == (Totals{}) {
		return nil
	}
	return &usagev1.Totals{Requests: t.Requests, Tokens: t.Tokens, SpentNanos: int64(t.Spent), EstimatedNanos: int64(t.Estimated)}
}

func encodeTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// decodeRow reads a row. It accepts what a ledger can hold and nothing else.
func decodeRow(in *usagev1.Row) (Row, error) {
	out := Row{ID: in.GetId(), Day: in.GetDay(), Month: in.GetMonth()}
	if out.ID == "" || len(out.ID) > maxIDBytes {
		return Row{}, fmt.Errorf("decode row: its ID has %d bytes, and 1 to %d are allowed", len(out.ID), maxIDBytes)
	}
	var err error
	if _, ok := DayString(out.Day); !ok && out.Day != 0 {
		return Row{}, fmt.Errorf("decode row %q: %d is no day", out.ID, out.Day)
	}
	if _, ok := MonthString(out.Month); !ok && out.Month != 0 {
		return Row{}, fmt.Errorf("decode row %q: %d is no month", out.ID, out.Month)
	}
	if out.DayUsage, err = decodeTotals(in.GetDayUsage()); err != nil {
		return Row{}, fmt.Errorf("decode the day of row %q: %w", out.ID, err)
	}
	if out.MonthUsage, err = decodeTotals(in.GetMonthUsage()); err != nil {
		return Row{}, fmt.Errorf("decode the month of row %q: %w", out.ID, err)
	}
	if out.LastUsed, err = decodeTime(in.GetLastUsed()); err != nil {
		return Row{}, fmt.Errorf("decode the last use of row %q: %w", out.ID, err)
	}
	if out.BlockedSince, err = decodeTime(in.GetBlockedSince()); err != nil {
		return Row{}, fmt.Errorf("decode when row %q was blocked: %w", out.ID, err)
	}
	return out, nil
}

func decodeTotals(in *usagev1.Totals) (Totals, error) {
	t := Totals{
		Requests: in.GetRequests(), Tokens: in.GetTokens(),
		Spent: money.Amount(in.GetSpentNanos()), Estimated: money.Amount(in.GetEstimatedNanos()),
	}
	if t.Requests < 0 || t.Tokens < 0 || t.Spent < 0 || t.Estimated < 0 {
		return Totals{}, errors.New("what was used cannot be negative")
	}
	return t, nil
}

func decodeTime(in *timestamppb.Timestamp) (time.Time, error) {
	if in == nil {
		return time.Time{}, nil
	}
	if err := in.CheckValid(); err != nil {
		return time.Time{}, err
	}
	return in.AsTime(), nil
}
