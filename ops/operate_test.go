package ops_test

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// What may run beside what («What may run when»): each row opens an image as a
// guest would, then asks for an operation.
func TestTermsOfOperations(t *testing.T) {
	reader, writer := ops.Read, ops.Write
	for _, tt := range []struct {
		name  string
		image string // of 1.vhdx <- 2.vhdx <- 3.vhdx
		open  string // what a guest has open, "" nothing
		how   ops.Access
		terms ops.Terms
		err   error
		text  string
	}{
		{"a leaf", "3.vhdx", "", reader, ops.Terms{}, nil, ""},
		{"beside a reader", "3.vhdx", "3.vhdx", reader, ops.Terms{}, nil, ""},
		{"beside a writer", "3.vhdx", "3.vhdx", writer, ops.Terms{}, nil, ""},
		{"a parent", "2.vhdx", "", reader, ops.Terms{}, ops.ErrReadOnly, "/vms/2.vhdx is the parent of /vms/3.vhdx"},
		{"a parent, quietly", "2.vhdx", "", reader, ops.Terms{Quiet: true}, nil, ""},
		{"a parent in use", "2.vhdx", "3.vhdx", writer, ops.Terms{}, ops.ErrReadOnly, "is the parent of an image that is open"},
		{"a parent in use, quietly", "1.vhdx", "3.vhdx", writer, ops.Terms{Quiet: true}, nil, ""},
		{"still beside a reader", "3.vhdx", "3.vhdx", reader, ops.Terms{Still: true}, nil, ""},
		{"still beside a writer", "3.vhdx", "3.vhdx", writer, ops.Terms{Still: true}, ops.ErrBusy, "/vms/3.vhdx is open for writing"},
		{"alone", "3.vhdx", "", reader, ops.Terms{Alone: true, Quiet: true}, nil, ""},
		{"alone beside a reader", "3.vhdx", "3.vhdx", reader, ops.Terms{Alone: true, Quiet: true}, ops.ErrBusy, "/vms/3.vhdx is open"},
		{"alone below a reader", "1.vhdx", "3.vhdx", reader, ops.Terms{Alone: true, Quiet: true}, ops.ErrBusy, "is the parent of an image that is open"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.line(3)
				if tt.open != "" {
					w.open(tt.open, tt.how)
				}
				tt.terms.Name = "work"
				o, err := w.lib.Operate(w.lib.Top(tt.image), tt.terms)
				if tt.err != nil {
					require.ErrorIs(t, err, tt.err)
					require.ErrorContains(t, err, tt.text)
					return
				}
				require.NoError(t, err)
				_, err = w.lib.Operate(w.lib.Top(tt.image), ops.Terms{Name: "more", Quiet: true})
				require.ErrorIs(t, err, ops.ErrBusy)
				require.ErrorContains(t, err, "work runs on it")
				require.NoError(t, o.Close())
				again, err := w.lib.Operate(w.lib.Top(tt.image), tt.terms)
				require.NoError(t, err)
				require.NoError(t, again.Close())
			})
		})
	}
}

// An operation keeps guests out as far as its terms say, and no longer.
func TestTermsKeepGuestsOut(t *testing.T) {
	for _, tt := range []struct {
		name  string
		terms ops.Terms
		how   ops.Access
		open  string
		err   string
	}{
		{"still keeps a writer out", ops.Terms{Still: true}, ops.Write, "2.vhdx", "is read by an operation"},
		{"still lets a reader in", ops.Terms{Still: true}, ops.Read, "2.vhdx", ""},
		{"alone keeps a reader out", ops.Terms{Alone: true}, ops.Read, "2.vhdx", "work runs on it"},
		{"plain lets a writer in", ops.Terms{}, ops.Write, "2.vhdx", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.line(2)
				tt.terms.Name = "work"
				o, err := w.lib.Operate(w.lib.Top("2.vhdx"), tt.terms)
				require.NoError(t, err)
				h, err := w.lib.Open(w.lib.Top(tt.open), tt.how)
				if tt.err != "" {
					require.ErrorIs(t, err, ops.ErrBusy)
					require.ErrorContains(t, err, tt.err)
				} else {
					require.NoError(t, err)
					require.NoError(t, h.Close())
				}
				require.NoError(t, o.Close())
				w.open(tt.open, tt.how)
			})
		})
	}
}

// A parent that an operation has alone cannot be opened by way of a child.
func TestAloneKeepsChildrenOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.line(2)
		o, err := w.lib.Operate(w.lib.Top("1.vhdx"), ops.Terms{Name: "work", Quiet: true, Alone: true})
		require.NoError(t, err)
		_, err = w.lib.Open(w.lib.Top("2.vhdx"), ops.Read)
		require.ErrorIs(t, err, ops.ErrBusy)
		h, err := w.lib.Look(w.lib.Top("1.vhdx"))
		require.NoError(t, err, "a glance is always allowed")
		require.NoError(t, h.Close())
		require.NoError(t, o.Close())
		w.open("2.vhdx", ops.Read)
	})
}

// A quiet operation does not let a guest write what has children.
func TestQuietAdmitsNoWriter(t *testing.T) {
	w := newWorld(t)
	w.line(2)
	o, err := w.lib.Operate(w.lib.Top("1.vhdx"), ops.Terms{Name: "work", Quiet: true})
	require.NoError(t, err)
	_, err = w.lib.Open(w.lib.Top("1.vhdx"), ops.Write)
	require.ErrorIs(t, err, ops.ErrReadOnly)
	require.NoError(t, o.Close())
}
