package fs

import (
	"encoding/json"
	"io"
	"time"
)

const (
	logLines   = 1024 // kept for .vhdfs/log; the older ones are in the daemon's own log
	logRequest = 1024 // bytes of a request that a line shows
)

// logLine is one operation as .vhdfs/log shows it. JSON quotes whatever the
// strings hold, so that one operation is one line.
type logLine struct {
	Time        time.Time
	User        uint32
	Process     uint32
	Operation   string
	Image       string `json:",omitempty"`
	Request     string
	ReturnValue uint32
	Error       string `json:",omitempty"`
	Seconds     float64
}

// logOperation adds a line for an operation that ended now.
func (m *mount) logOperation(l logLine) {
	if len(l.Request) > logRequest {
		l.Request = l.Request[:logRequest] + "…"
	}
	b, err := json.Marshal(l)
	if err != nil { // a struct of strings and numbers
		panic(err)
	}
	m.log.WithField("operation", l.Operation).WithField("image", l.Image).
		WithField("uid", l.User).WithField("error", l.Error).Info("operation")
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.log[m.mu.logNext%logLines] = append(b, '\n')
	m.mu.logNext++
}

// renderLog writes the lines that are kept, newest last.
func (m *mount) renderLog(w io.Writer) error {
	for _, line := range m.logged() {
		if _, err := w.Write(line); err != nil {
			return err
		}
	}
	return nil
}

func (m *mount) logged() [][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	first := max(0, m.mu.logNext-logLines)
	lines := make([][]byte, 0, m.mu.logNext-first)
	for i := first; i < m.mu.logNext; i++ {
		lines = append(lines, m.mu.log[i%logLines])
	}
	return lines
}
