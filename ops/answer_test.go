package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAnswer(t *testing.T) {
	for _, tt := range []struct {
		name string
		a    Answer
		want string
	}{
		{"success", Answer{Operation: "ValidateVirtualHardDisk"}, `{"Operation":"ValidateVirtualHardDisk","ReturnValue":0}`},
		{"fields keep their order", Answer{Operation: "x", Fields: Fields{{"B", 1}, {"A", "two"}}}, `{"Operation":"x","ReturnValue":0,"B":1,"A":"two"}`},
		{"class and status", Answer{Operation: "x", Err: Errorf(ErrBusy, StatusOwned, "disk.vhdx: locked by a writer")},
			`{"Operation":"x","ReturnValue":32774,"Error":"disk.vhdx: locked by a writer: in use. Close the program that uses it and try again.","Errno":"EBUSY","JobCompletionStatusCode":3225026590}`},
		{"fields of a failure", Answer{Operation: "x", Fields: Fields{{"Child", "/a"}}, Err: Errorf(ErrParentMissing, StatusParentNotFound, "b.vhdx")},
			`{"Operation":"x","ReturnValue":32779,"Child":"/a","Error":"b.vhdx: parent not found. Put the parent where the image expects it, or name its folder with --search or --allow-parent; chain.json lists what was tried.","Errno":"ENOLINK","JobCompletionStatusCode":3225026573}`},
		{"two names for one errno", Answer{Operation: "x", Err: fmt.Errorf("iso: resize: %w", errors.ErrUnsupported)},
			`{"Operation":"x","ReturnValue":32770,"Error":"iso: resize: unsupported operation.","Errno":"EOPNOTSUPP","JobCompletionStatusCode":0}`},
		{"errno of the host", Answer{Operation: "x", Err: fmt.Errorf("write: %w", syscall.ENOSPC)},
			`{"Operation":"x","ReturnValue":32768,"Error":"write: no space left on device.","Errno":"ENOSPC","JobCompletionStatusCode":0}`},
		{"ENOSYS never leaves", Answer{Operation: "x", Err: syscall.ENOSYS},
			`{"Operation":"x","ReturnValue":32770,"Error":"function not implemented.","Errno":"EOPNOTSUPP","JobCompletionStatusCode":0}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := json.Marshal(tt.a)
			require.NoError(t, err)
			require.Equal(t, tt.want, string(got))
		})
	}
}

func TestDoKeepsWhatARunFoundBesideItsFailure(t *testing.T) {
	op := &Op{Name: "check", Run: func(context.Context, *Request) (Fields, error) {
		return Fields{{"Found", 3}}, ErrCorrupt
	}}
	a := op.Do(context.Background(), &Request{})
	require.Equal(t, "check", a.Operation)
	require.Equal(t, Fields{{"Found", 3}}, a.Fields)
	require.Equal(t, uint32(32768), a.ReturnValue())
	require.ErrorIs(t, a.Err, ErrCorrupt)
}

// Every name of the table can be a file, a command and a key without clashes.
func TestTableOfOperations(t *testing.T) {
	seen := map[string]bool{}
	for _, op := range All {
		require.Regexp(t, `^[a-z]+(-[a-z]+)*$`, op.Name)
		require.False(t, seen[op.Name], "%s twice", op.Name)
		seen[op.Name] = true
		require.NotNil(t, op.Run, op.Name)
		require.NotEmpty(t, op.Brief, op.Name)
		bare := 0
		keys := map[string]bool{}
		for _, a := range op.Args {
			require.NotEmpty(t, a.Help, "%s %s", op.Name, a.Name)
			require.False(t, keys[a.Key()], "%s %s twice", op.Name, a.Key())
			keys[a.Key()] = true
			if a.Bare {
				bare++
				require.NotContains(t, []ArgKind{ArgBool, ArgWord}, a.Kind, "%s %s", op.Name, a.Name)
			}
			if a.Default != "" {
				_, err := a.parse(a.Default)
				require.NoError(t, err, "%s %s", op.Name, a.Name)
			}
		}
		require.LessOrEqual(t, bare, 1, op.Name)
	}
}

// Every errno of the table has a symbol, and the one that people know it by.
func TestErrnoSymbols(t *testing.T) {
	require.Equal(t, "", Errno(nil))
	for _, c := range Classes {
		require.Regexp(t, `^E[A-Z0-9]+$`, Errno(c.Err))
	}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{ErrCorrupt, "EUCLEAN"}, {errors.ErrUnsupported, "EOPNOTSUPP"}, {ErrCycle, "ELOOP"}, {ErrParentMismatch, "ESTALE"},
		{ErrPastEnd, "ENOSPC"}, {ErrForbidden, "EPERM"}, {ErrNoTracking, "ENODATA"}, {ErrTooLong, "E2BIG"}, {syscall.EAGAIN, "EAGAIN"},
	} {
		require.Equal(t, tt.want, Errno(tt.err))
	}
}
