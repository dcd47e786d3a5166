package vhd

import (
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
)

// slowFile holds every sync until it is let go.
type slowFile struct {
	ops.File
	begun, release chan struct{}
}

func (f *slowFile) Sync(label string) error {
	f.begun <- struct{}{}
	<-f.release
	return f.File.Sync(label)
}

// A flush that finds nothing new to sync may rely on one that is under way, but
// not pass it.
func TestFlushesDoNotOvertake(t *testing.T) {
	for name, v := range map[string]fixture.VHD{
		"fixed":   {Size: 1 << 20, Type: 2},
		"dynamic": {Size: 4 << 20, Type: 3, Writes: []fixture.Write{{Off: 0, Data: make([]byte, 512)}}},
	} {
		t.Run(name, func(t *testing.T) {
			f := &slowFile{openFile(t, disk(v.Bytes()), ops.Write), make(chan struct{}, 8), make(chan struct{})}
			l, err := Open(f, ops.OpenOptions{Write: true, Ext: ".vhd", Cache: ops.NewCache(1 << 20)})
			require.NoError(t, err)
			w := l.(ops.Writer)
			_, err = w.WriteAt(make([]byte, 512), 0)
			require.NoError(t, err)
			done := make(chan error, 2)
			go func() { done <- w.Flush() }()
			<-f.begun
			go func() { done <- w.Flush() }()
			for range 10_000 {
				runtime.Gosched()
			}
			require.Empty(t, done, "nothing is durable yet")
			close(f.release)
			require.NoError(t, <-done)
			require.NoError(t, <-done)
			require.NoError(t, w.Close())
		})
	}
}
