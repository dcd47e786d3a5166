package ops

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A dry request reaches only what can plan, or what writes nothing anyway.
func TestDryRequests(t *testing.T) {
	ifKeep := func(a Args) bool { return a.Bool("Keep") }
	for _, tt := range []struct {
		name    string
		op      Op
		args    Args
		dry     bool
		changes bool
		err     error
	}{
		{"reads", Op{}, Args{"DryRun": true}, true, false, nil},
		{"reads, for real", Op{}, Args{}, false, false, nil},
		{"writes and plans", Op{Writes: true, Plans: true}, Args{"DryRun": true}, true, false, nil},
		{"writes and plans, for real", Op{Writes: true, Plans: true}, Args{"DryRun": false}, false, true, nil},
		{"writes without a plan", Op{Writes: true}, Args{"DryRun": true}, false, false, errors.ErrUnsupported},
		{"writes with these arguments", Op{WritesIf: ifKeep}, Args{"Keep": true}, false, true, nil},
		{"writes with these arguments, without a plan", Op{WritesIf: ifKeep}, Args{"Keep": true, "DryRun": true}, false, false, errors.ErrUnsupported},
		{"would write with others", Op{WritesIf: ifKeep}, Args{"DryRun": true}, true, false, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ran, dry := false, false
			tt.op.Run = func(_ context.Context, r *Request) (Fields, error) {
				ran, dry = true, r.Dry
				return nil, nil
			}
			require.Equal(t, tt.changes, tt.op.Changes(tt.args))
			a := tt.op.Do(context.Background(), &Request{Args: tt.args})
			require.ErrorIs(t, a.Err, tt.err)
			require.Equal(t, tt.err == nil, ran)
			require.Equal(t, tt.dry, dry)
		})
	}
}

func TestBegin(t *testing.T) {
	(&Request{}).Begin(5)
	var got [][2]int64
	r := &Request{Progress: func(done, all int64) { got = append(got, [2]int64{done, all}) }}
	r.Begin(5)
	require.Equal(t, [][2]int64{{0, 5}}, got)
}

func TestPlan(t *testing.T) {
	p := Plan{Makes: []string{"/vms/a.vhdx"}, Removes: []string{"/vms/b"}, Move: 10, Need: 20, Free: 19, Size: 30}
	b, err := json.Marshal(p.Fields())
	require.NoError(t, err)
	require.Equal(t, `{"DryRun":true,"Makes":["/vms/a.vhdx"],"Removes":["/vms/b"],"BytesToMove":10,"SpaceNeeded":20,"SpaceFree":19,"SizeAfter":30}`, string(b))
	err = p.Enough("/vms/a.vhdx")
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.EqualError(t, err, "/vms/a.vhdx needs 20 bytes, the host has 19 left: no space left on device")
	p.Need = 19
	require.NoError(t, p.Enough("/vms/a.vhdx"))
	p.Need, p.Free = 1<<62, math.MaxInt64
	require.NoError(t, p.Enough(""))
	b, err = json.Marshal(Plan{Free: math.MaxInt64}.Fields())
	require.NoError(t, err)
	require.Equal(t, `{"DryRun":true,"BytesToMove":0,"SpaceNeeded":0,"SpaceFree":null,"SizeAfter":0}`, string(b))
}
