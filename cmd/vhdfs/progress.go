package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	progressStep = 200 * time.Millisecond
	clearLine    = "\r\x1b[K"
)

// progress is one line on a terminal that says how far an operation is, kept up to
// date until the end, when it goes. Elsewhere it is nothing.
type progress struct {
	w    io.Writer // nil: not a terminal
	name string
	stop chan struct{}
	gone sync.WaitGroup
	mu   struct {
		sync.Mutex
		done, all int64
		began     time.Time // when all was known first; zero before
		first     int64     // how much was done then
	}
}

// newProgress shows progress if w is a terminal.
func newProgress(w io.Writer, name string) *progress {
	f, ok := w.(*os.File)
	if !ok {
		return &progress{}
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return &progress{}
	}
	return startProgress(w, name)
}

func startProgress(w io.Writer, name string) *progress {
	p := &progress{w: w, name: name, stop: make(chan struct{})}
	p.gone.Go(p.keep)
	return p
}

func (p *progress) shown() bool { return p.w != nil }

// set notes how many bytes of all are done; all is 0 while it is unknown.
func (p *progress) set(done, all int64) {
	if !p.shown() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if all > 0 && p.mu.began.IsZero() {
		p.mu.began, p.mu.first = time.Now(), done
	}
	p.mu.done, p.mu.all = done, all
}

// end takes the line away.
func (p *progress) end() {
	if !p.shown() {
		return
	}
	close(p.stop)
	p.gone.Wait()
	p.w = nil
}

func (p *progress) keep() {
	tick := time.NewTicker(progressStep)
	defer tick.Stop()
	drawn := false
	for {
		select {
		case <-p.stop:
			if drawn {
				fmt.Fprint(p.w, clearLine)
			}
			return
		case <-tick.C:
			if line := p.line(); line != "" {
				fmt.Fprint(p.w, clearLine+line)
				drawn = true
			}
		}
	}
}

// line says how far it is; empty while nothing is known.
func (p *progress) line() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.began.IsZero() {
		return ""
	}
	s := fmt.Sprintf("%s: %d%%, %s of %s", p.name, percent(p.mu.done, p.mu.all), rounded(p.mu.done), rounded(p.mu.all))
	past := time.Since(p.mu.began).Seconds()
	rate := float64(p.mu.done-p.mu.first) / past
	if past < 1 || rate < 1 {
		return s
	}
	left := time.Duration(float64(p.mu.all-p.mu.done) / rate * float64(time.Second))
	return s + fmt.Sprintf(", %s/s, %s left", rounded(int64(rate)), left.Round(time.Second))
}

func percent(done, all int64) int { return int(min(100, float64(done)/float64(all)*100)) }

// rounded is a number of bytes for people.
func rounded(n int64) string {
	v, unit := float64(n), "B"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if v < 1024 {
			break
		}
		v, unit = v/1024, u
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}
