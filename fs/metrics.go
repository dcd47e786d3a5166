package fs

import (
	"fmt"
	"io"
	"runtime/debug"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// counters count since the mount. They only grow.
type counters struct {
	reads, readBytes   atomic.Int64
	writes, writeBytes atomic.Int64
	zeroes, zeroBytes  atomic.Int64
	flushes            atomic.Int64
	opens, openErrors  atomic.Int64
	ioErrors           atomic.Int64
	operations         atomic.Int64
	operationErrors    atomic.Int64
}

// renderMetrics writes the counters in the Prometheus text format.
func (m *mount) renderMetrics(w io.Writer) error {
	c := &m.counted
	rows := []struct {
		name, help string
		value      int64
	}{
		{"vhdfs_raw_reads_total", "READ requests for raw and partitions.", c.reads.Load()},
		{"vhdfs_raw_read_bytes_total", "Bytes answered to them.", c.readBytes.Load()},
		{"vhdfs_raw_writes_total", "WRITE requests for raw and partitions.", c.writes.Load()},
		{"vhdfs_raw_write_bytes_total", "Bytes stored by them.", c.writeBytes.Load()},
		{"vhdfs_raw_zeroes_total", "Requests to punch or zero a range.", c.zeroes.Load()},
		{"vhdfs_raw_zero_bytes_total", "Bytes zeroed by them.", c.zeroBytes.Load()},
		{"vhdfs_raw_flushes_total", "FSYNC requests for raw and partitions.", c.flushes.Load()},
		{"vhdfs_raw_opens_total", "Successful opens of raw and partitions.", c.opens.Load()},
		{"vhdfs_raw_open_errors_total", "Failed opens of raw and partitions.", c.openErrors.Load()},
		{"vhdfs_raw_io_errors_total", "Failed reads, writes, zeroes and flushes.", c.ioErrors.Load()},
		{"vhdfs_operations_total", "Requests written to control files.", c.operations.Load()},
		{"vhdfs_operation_errors_total", "Of these, those that failed.", c.operationErrors.Load()},
		{"vhdfs_panics_total", "Broken invariants; each answered EIO.", m.opts.Panics.Load()},
	}
	for _, r := range rows {
		if err := writeMetric(w, r.name, r.help, "counter", r.value); err != nil {
			return err
		}
	}
	return writeMetric(w, "vhdfs_open_handles", "Open handles of raw and partitions.", "gauge", int64(len(m.handles())))
}

func writeMetric(w io.Writer, name, help, kind string, value int64) error {
	_, err := fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s %d\n", name, help, name, kind, name, value)
	return err
}

// panicked answers a request whose handler panicked. The library recovers the
// panics of an image itself, and poisons that image.
func (m *mount) panicked(what any) fuse.Status {
	m.brokenInvariant("request", what, debug.Stack())
	return fuse.EIO
}

// brokenInvariant counts a panic that was recovered.
func (m *mount) brokenInvariant(where string, what any, stack []byte) {
	m.opts.Panics.Add(1)
	m.log.WithField("stack", string(stack)).Errorf("%s: broken invariant: %v", where, what)
}
