package set_test

import (
	"errors"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// Who opens a set while its active disk is discarded, or looks for its file, finds the
// disk that took its place.
func TestSetIsOpenedWhileItsDiskGoes(t *testing.T) {
	s, err := prepared(change{name: "apply"})
	require.NoError(t, err)
	done := make(chan struct{})
	var looking sync.WaitGroup
	each := func(look func() error) {
		looking.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := look(); err != nil && !errors.Is(err, ops.ErrBusy) {
					t.Error(err)
					return
				}
			}
		})
	}
	each(func() error {
		h, err := s.lib.Open(s.lib.Top(setName), ops.Read)
		if err != nil {
			return err
		}
		return h.Close()
	})
	each(func() error {
		found, err := s.lib.Inspect(s.lib.Top(setName))
		if err == nil && found.Err == nil {
			_, _, err = s.lib.Active(found)
		}
		return err
	})
	for range 400 {
		if err := s.ask("apply", setName, "s1"); err != nil {
			require.ErrorIs(t, err, ops.ErrBusy)
		}
	}
	close(done)
	looking.Wait()
}
