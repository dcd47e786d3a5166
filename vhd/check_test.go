package vhd

import (
	"bytes"
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
)

// between runs a step each time that somebody asks whether to go on.
type between struct {
	context.Context
	step func()
}

func (b between) Err() error { b.step(); return nil }

// While a check reads a table in slices guests write, blocks move, and what the check
// has seen is not so any more: it makes nothing of that.
func TestCheckLetsWritersIn(t *testing.T) {
	const block = 4096
	image := fixture.VHD{Size: 200_000 * block, BlockSize: block}
	for b := range int64(4) {
		image.Writes = append(image.Writes, fixture.Write{Off: b * block, Data: pattern(block, byte(b+1))})
	}
	put := func(w *writer, blocks ...int64) {
		for _, b := range blocks {
			_, err := w.WriteAt(pattern(512, 9), b*block)
			require.NoError(t, err)
		}
	}
	for name, steps := range map[string][]func(w *writer){
		"new blocks": {nil, func(w *writer) { put(w, 5, 190_000) }, func(w *writer) { put(w, 6, 191_000) }},
		// Seen: blocks 0 to 3. Then block 3 takes the place of 0, and another that of 3.
		"a place used again": {nil, func(w *writer) {
			require.NoError(t, w.Zero(0, block, true))
			compact(t, w, ops.CompactOptions{Scan: true, Move: true})
			put(w, 150_000)
		}},
		// Seen behind blocks that were not there before: not the space between.
		"space that was not there": {nil, func(w *writer) {
			for b := range int64(30) {
				put(w, 10+b)
			}
			put(w, 150_000)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := openWriter(t, disk(image.Bytes())).(*writer)
			n := 0
			ctx := between{t.Context(), func() {
				require.True(t, w.mu.TryLock(), "a check holds the disk while it asks")
				w.mu.Unlock()
				if n < len(steps) && steps[n] != nil {
					steps[n](w)
				}
				n++
			}}
			require.NoError(t, w.CheckTable(ctx, func(a ops.Anomaly) { t.Error(a) }))
			require.Equal(t, 4, n)
			require.NoError(t, w.Check(t.Context(), func(a ops.Anomaly) { require.Equal(t, "vhd.leak", a.Name, "room made ahead") }))
			require.NoError(t, w.Close())
		})
	}
}

// Checks and guests at once, for the race detector.
func TestChecksBesideWriters(t *testing.T) {
	w := openWriter(t, disk(fixture.VHD{Size: 100_000 * 4096, BlockSize: 4096}.Bytes())).(*writer)
	done := make(chan error)
	go func() {
		var err error
		for i := int64(0); i < 300 && err == nil; i++ {
			_, err = w.WriteAt(bytes.Repeat([]byte{byte(i)}, 512), i*7919%100_000*4096)
			if i%50 == 49 && err == nil {
				err = w.Flush()
			}
		}
		done <- err
	}()
	for range 10 {
		require.NoError(t, w.CheckTable(t.Context(), func(a ops.Anomaly) { require.Equal(t, "vhd.leak", a.Name, "room made ahead") }))
	}
	require.NoError(t, <-done)
	require.NoError(t, w.Close())
}
