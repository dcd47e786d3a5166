package conformance

import (
	"io"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// flat is a format whose file is the disk, one mark byte for each sector in
// front: 0 absent, 1 zero, 2 data. bug breaks it in one way.
type flat struct {
	ops.Layer
	f        ops.File
	size     int64
	bug      string
	mu       sync.Mutex
	poisoned bool
}

const flatSize = 1 << 20

func flatFormat(bug string) *ops.Format {
	return &ops.Format{
		Name: "flat", Extensions: []string{".flat"},
		Open: func(f ops.File, o ops.OpenOptions) (ops.Layer, error) {
			if bug == "open writes" && o.Write {
				if _, err := f.WriteAt([]byte{0}, 0); err != nil {
					return nil, err
				}
			}
			return &flat{f: f, size: flatSize, bug: bug}, nil
		},
		Create: func(f ops.File, _ ops.CreateSpec) error {
			return f.Truncate(flatSize+flatSize/sector, "flat.create")
		},
	}
}

func (l *flat) Size() int64 { return l.size }
func (l *flat) Info() ops.Info {
	return ops.Info{Type: ops.Differencing, LogicalSector: sector, BlockSize: 4096}
}
func (l *flat) Close() error { return l.f.Close() }

func (l *flat) kind(off int64) ops.Kind {
	b := make([]byte, 1)
	if _, err := l.f.ReadAt(b, off/sector); err != nil {
		panic(err)
	}
	return ops.Kind(b[0])
}

func (l *flat) check(off int64) error {
	if off < 0 && l.bug != "negative is end" {
		return ops.Errorf(ops.ErrUsage, 0, "offset %d", off)
	}
	if off < 0 || off >= l.size && l.bug != "no end" {
		return io.EOF
	}
	return nil
}

func (l *flat) ReadRun(p []byte, off int64) (int, ops.Kind, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(p) == 0 {
		return 0, ops.Zero, nil
	}
	if err := l.check(off); err != nil {
		return 0, 0, err
	}
	if off >= l.size {
		return 0, 0, nil
	}
	n := int(min(int64(len(p)), sector-off%sector))
	k := l.kind(off)
	switch {
	case k == ops.Data && l.bug == "unaligned start":
		_, err := l.f.ReadAt(p[:n], flatSize/sector+off/sector*sector)
		return n, k, err
	case k == ops.Data:
		_, err := l.f.ReadAt(p[:n], flatSize/sector+off)
		return n, k, err
	case k == ops.Zero || l.bug == "absent clears":
		clear(p[:n])
	}
	if k == ops.Zero && l.bug == "zero is absent" {
		k = ops.Absent
	}
	return n, k, nil
}

func (l *flat) Extent(off, limit int64) (ops.Extent, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.check(off); err != nil {
		return ops.Extent{}, err
	}
	if off >= l.size {
		return ops.Extent{}, nil
	}
	e := ops.Extent{Len: min(limit, sector-off%sector), Kind: l.kind(off), Pos: -1}
	if e.Kind == ops.Data {
		e.Pos = flatSize/sector + off
	}
	switch l.bug {
	case "extent ignores max":
		e.Len = sector - off%sector
	case "extent without place":
		e.Pos = -1
	case "extent says data":
		e.Kind, e.Pos = ops.Data, 0
	}
	return e, nil
}

func (l *flat) set(p []byte, off int64, k ops.Kind) error {
	if l.poisoned {
		return ops.Errorf(ops.ErrPoisoned, 0, "flat")
	}
	n := int64(len(p))
	if (off%sector != 0 || n%sector != 0) && l.bug != "any alignment" {
		return ops.Errorf(ops.ErrUsage, 0, "offset %d, length %d", off, n)
	}
	if off < 0 || off > l.size-n {
		return ops.Errorf(ops.ErrPastEnd, 0, "offset %d, length %d", off, n)
	}
	marks := make([]byte, n/sector)
	for i := range marks {
		marks[i] = byte(k)
	}
	if _, err := l.f.WriteAt(p, flatSize/sector+off); err != nil {
		return err
	}
	_, err := l.f.WriteAt(marks, off/sector)
	return err
}

func (l *flat) WriteAt(p []byte, off int64) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bug == "torn when full" && l.size > 0 && len(p) > 4*sector {
		_ = l.set(make([]byte, sector), off+int64(len(p))-sector, ops.Data) // neither old nor new
		if err := l.set(p, off, ops.Data); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	if l.bug == "loses a write" && off%(8*sector) == 0 {
		return len(p), nil
	}
	if err := l.set(p, off, ops.Data); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (l *flat) Zero(off, n int64, _ bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n < 0 {
		return ops.Errorf(ops.ErrUsage, 0, "length %d", n)
	}
	k := ops.Zero
	if l.bug == "zero uncovers the parent" {
		k = ops.Absent
	}
	return l.set(make([]byte, min(n, 2*l.size)/sector*sector+n%sector), off, k)
}

func (l *flat) Flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.poisoned {
		return ops.Errorf(ops.ErrPoisoned, 0, "flat")
	}
	err := l.f.Sync("flat.data")
	l.poisoned = err != nil && l.bug != "forgets a failed sync"
	return err
}

func flatHost(bug string) Start { return Created(flatFormat(bug), ops.CreateSpec{}) }

// oneLayer is a layer with all three kinds, and what it holds.
func oneLayer(t *testing.T, bug string) (ops.Layer, *Disk) {
	t.Helper()
	h := flatHost("")(t)
	l, err := openImage(h, flatFormat(bug), ops.Write)
	require.NoError(t, err)
	want, data := NewDisk(flatSize), make([]byte, 3*sector)
	for i := range data {
		data[i] = byte(i/3 + 1)
	}
	good := &flat{f: l.(*flat).f, size: flatSize}
	for _, off := range []int64{0, 7 * sector, flatSize - 3*sector} {
		_, err := good.WriteAt(data, off)
		require.NoError(t, err)
		want.Write(off, data)
	}
	require.NoError(t, good.Zero(20*sector, 5*sector, false))
	want.Zero(20*sector, 5*sector)
	return l, want
}

func TestSuitePassesARightFormat(t *testing.T) {
	Layer(t, func(t *testing.T) ops.Layer { l, _ := oneLayer(t, ""); return l }, func() *Disk { _, d := oneLayer(t, ""); return d }())
	Writer(t, flatFormat(""), flatHost(""), NewDisk(flatSize))
}

// fails runs a check and tells whether it ended in a failure.
func fails(check func(t tb)) bool {
	var r recorder
	func() {
		defer func() { _ = recover() }()
		check(&r)
	}()
	return r.failed
}

func TestSuiteSeesBrokenLayers(t *testing.T) {
	for bug, check := range map[string]func(tb, ops.Layer, *Disk){
		"negative is end":      checkBounds,
		"no end":               checkBounds,
		"unaligned start":      checkRuns,
		"absent clears":        checkContent,
		"zero is absent":       checkContent,
		"extent ignores max":   checkExtents,
		"extent without place": checkExtents,
		"extent says data":     checkExtents,
	} {
		t.Run(bug, func(t *testing.T) {
			l, want := oneLayer(t, bug)
			require.True(t, fails(func(t tb) { check(t, l, want) }))
			l, want = oneLayer(t, "")
			require.False(t, fails(func(t tb) { check(t, l, want) }))
		})
	}
}

func TestSuiteSeesBrokenWriters(t *testing.T) {
	for bug, check := range map[string]func(tb, *writer){
		"any alignment":            checkSectorRules,
		"open writes":              checkOpeningWritesNothing,
		"loses a write":            checkRandomChanges,
		"zero uncovers the parent": checkRandomChanges,
		"torn when full":           checkHostFull,
		"forgets a failed sync":    checkPoison,
	} {
		t.Run(bug, func(t *testing.T) {
			start := func(bug string) *writer {
				w := &writer{format: flatFormat(bug), host: flatHost("")(t), want: NewDisk(flatSize)}
				w.open(t)
				return w
			}
			require.True(t, fails(func(t tb) { w := start(bug); check(t, w); w.finish(t) }))
			require.False(t, fails(func(t tb) { w := start(""); check(t, w); w.finish(t) }))
		})
	}
}
