package provider

import (
	"net/http"
)

// Control returns the handler of the control API, which belongs on a port that no gateway leads to:
//
//	GET  /_sim/health         {"status":"ok"}; 500 when the log cannot be written
//	GET  /_sim/requests       {"requests":[Record…]}, oldest first; ?state=holding only those in that state
//	POST /_sim/release?id=X   releases the streams held with the record's id or the name X; 404 if there is none
//	POST /_sim/reset          forgets all records and releases all held streams
//
// It has no credential: the records hold the provider's own.
func (s *Server) Control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /_sim/health", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.LogError(); err != nil {
			writeControl(w, http.StatusInternalServerError, object{"status": "failed", "error": err.Error()})
			return
		}
		writeControl(w, http.StatusOK, object{"status": "ok"})
	})
	mux.HandleFunc("GET /_sim/requests", func(w http.ResponseWriter, r *http.Request) {
		state := State(r.URL.Query().Get("state"))
		records := []Record{}
		for _, record := range s.Requests() {
			if state == "" || record.State == state {
				records = append(records, record)
			}
		}
		writeControl(w, http.StatusOK, object{"requests": records})
	})
	mux.HandleFunc("POST /_sim/release", func(w http.ResponseWriter, r *http.Request) {
		if !s.Release(r.URL.Query().Get("id")) {
			writeControl(w, http.StatusNotFound, object{"status": "failed", "error": "no stream is held with this id"})
			return
		}
		writeControl(w, http.StatusOK, object{"status": "ok"})
	})
	mux.HandleFunc("POST /_sim/reset", func(w http.ResponseWriter, _ *http.Request) {
		s.Reset()
		writeControl(w, http.StatusOK, object{"status": "ok"})
	})
	return mux
}

func writeControl(w http.ResponseWriter, status int, document object) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// A client that has left needs no answer.
	_, _ = w.Write(encode(document))
}
