package telemetry

import (
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
)

// faultsEvery is how often faults are logged at the most.
const faultsEvery = time.Minute

// faults counts what could not be sent, and logs it at a bounded rate. It implements otel.ErrorHandler.
type faults struct {
	log *slog.Logger
	now func() time.Time

	mu         sync.Mutex
	loggedAt   time.Time // the zero time: never
	unlogged   int64     // faults since then
	lost       int64     // spans
	lostLogged int64
	last       string
}

func newFaults(log *slog.Logger, now func() time.Time) *faults { return &faults{log: log, now: now} }

// Handle implements otel.ErrorHandler: a batch could not be sent, or some such.
func (f *faults) Handle(err error) { f.tell(err.Error(), 0) }

// lose counts spans that were thrown away.
func (f *faults) lose(spans int64, why string) { f.tell(why, spans) }

func (f *faults) tell(what string, spans int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unlogged++
	f.lost += spans
	f.last = what
	if now := f.now(); f.loggedAt.IsZero() || now.Sub(f.loggedAt) >= faultsEvery {
		f.loggedAt = now
		f.write()
	}
}

// close logs what has not been yet.
func (f *faults) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unlogged > 0 {
		f.write()
	}
}

// write logs. It holds mu.
func (f *faults) write() {
	f.log.Warn("telemetry could not be sent; requests are not held up by that", slog.String("error", f.last),
		slog.Int64("faults", f.unlogged), slog.Int64("spansLost", f.lost-f.lostLogged), slog.Int64("spansLostInAll", f.lost))
	f.unlogged, f.lostLogged = 0, f.lost
}

// spansLost is how many spans were thrown away.
func (f *faults) spansLost() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lost
}

// logger is where the SDK logs to. Its values are left out: among them are headers that could not be read, with the credentials in them.
func (f *faults) logger() logr.Logger { return logr.New(sink{f}) }

type sink struct{ faults *faults }

func (s sink) Init(logr.RuntimeInfo)                   {}
func (s sink) Enabled(int) bool                        { return false }
func (s sink) Info(int, string, ...any)                {}
func (s sink) Error(_ error, message string, _ ...any) { s.faults.tell(message, 0) }
func (s sink) WithValues(...any) logr.LogSink          { return s }
func (s sink) WithName(string) logr.LogSink            { return s }
