package ops_test

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// The methods of the service that attach, find, begin and end take its parameters
// under its names and in its types, and answer as jobs where it does.
func TestMethodsOfTheService(t *testing.T) {
	for _, tt := range []struct {
		op, method string
		image      string   // the parameter that the control file's place stands for
		in         []string // its other parameters, each as JSON of its type
		own        string   // arguments that go beyond it
		job        bool     // it has a Job
		jobType    uint16
	}{
		{"attach", "AttachVirtualHardDisk", "Path", []string{`"AssignDriveLetter":true`, `"ReadOnly":false`}, "Direct Device", true, 7},
		{"detach", "DetachVirtualHardDisk", "this", nil, "", true, 0}, // a job besides: a flush may take long
		{"find", "FindMountedStorageImageInstance", "", []string{`"SelectionCriterion":"a.vhdx"`, `"CriterionType":2`}, "", false, 0},
		{"request-state-change", "RequestStateChange", "", []string{`"RequestedState":2`, `"TimeoutPeriod":"00000000000000.000000:000"`}, "Force", false, 0},
		{"start", "StartService", "", nil, "", false, 0},
		{"stop", "StopService", "", nil, "Force", false, 0},
		{"validate-persistent-reservations", "ValidatePersistentReservationSupport", "", []string{`"Path":"a.vhdx"`}, "", true, 0},
	} {
		t.Run(tt.op, func(t *testing.T) {
			o := op(t, tt.op)
			require.Equal(t, tt.method, o.Title())
			require.Equal(t, tt.image == "", o.Service)
			require.Equal(t, tt.job, !o.Sync)
			require.Equal(t, tt.jobType, o.JobType)
			args, err := o.Parse("{" + strings.Join(tt.in, ",") + "}")
			if len(tt.in) > 0 {
				require.NoError(t, err)
			}
			want := strings.Fields(tt.own)
			for _, in := range tt.in {
				name := strings.Split(in, `"`)[1]
				require.Contains(t, args, name)
				want = append(want, name)
			}
			var got []string
			for _, a := range o.Args {
				got = append(got, a.Name)
			}
			require.ElementsMatch(t, want, got)
		})
	}
}

// attachments are what a mount would say is attached.
type attachments []ops.Attachment

func (a attachments) Attached() []ops.Attachment { return a }

func TestFind(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"a.vhdx", "b.vhdx", "sub/c.vhdx"} {
		w.image("/vms/"+name, fakeImage{ID: guid(1)})
	}
	a := w.ask("find", ".", "a.vhdx")
	require.EqualValues(t, 32789, a.ReturnValue(), "nothing is attached")
	require.Equal(t, "FindMountedStorageImageInstance", a.Operation)
	list := attachments{}
	for i, name := range []string{"a.vhdx", "sub/c.vhdx"} {
		ref := w.lib.Top(name)
		st, err := ref.Dir.Stat(ref.Name)
		require.NoError(t, err)
		list = append(list, ops.Attachment{Number: uint32(i + 1), Image: ref, ID: st.ID, Device: "/dev/loop9"})
	}
	gone := w.lib.Top("gone.vhdx")
	list = append(list, ops.Attachment{Number: 3, Image: gone, ID: ops.FileID{Ino: 1 << 40}, ReadOnly: true})
	w.lib.SetAttachments(list)
	for _, tt := range []struct {
		request string
		want    string // "" where it is refused
		value   uint32
	}{
		{"a.vhdx", "/vms/a.vhdx", 0},
		{"path=sub/c.vhdx", "/vms/sub/c.vhdx", 0},
		{"/vms/./a.vhdx", "/vms/a.vhdx", 0},
		{"selectioncriterion=a.vhdx criteriontype=2", "/vms/a.vhdx", 0},
		{`{"SelectionCriterion":"a.vhdx","CriterionType":2}`, "/vms/a.vhdx", 0},
		{"gone.vhdx", "/vms/gone.vhdx", 0},
		{"b.vhdx", "", 32789},
		{"never.vhdx", "", 32789},
		{"a.vhdx by=0", "", 32773},
		{"a.vhdx by=1", "", 32773},
		{"", "", 32773},
		{"../a.vhdx", "", 32773},
		{".", "", 32773},
		{"/vms", "", 32769},
		{"/other/a.vhdx", "", 32769},
	} {
		a := w.ask("find", ".", tt.request)
		require.Equal(t, tt.value, a.ReturnValue(), tt.request)
		if tt.want != "" {
			m, ok := field(a, "Image").(*ops.MountedStorageImage)
			require.True(t, ok, tt.request)
			require.Equal(t, tt.want, m.Name, tt.request)
		} else if tt.value == 32789 {
			b, err := a.MarshalJSON()
			require.NoError(t, err)
			require.Contains(t, string(b), `"Image":null`)
		}
	}
}

// A file is found by the name that it has now.
func TestFindComparesFiles(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/a.vhdx", fakeImage{ID: guid(1)})
	ref := w.lib.Top("a.vhdx")
	st, err := ref.Dir.Stat(ref.Name)
	require.NoError(t, err)
	w.lib.SetAttachments(attachments{{Number: 1, Image: ref, ID: st.ID}})
	require.NoError(t, w.dirs["/vms"].Rename("a.vhdx", "b.vhdx"))
	w.image("/vms/a.vhdx", fakeImage{ID: guid(2)})
	require.NoError(t, w.ask("find", ".", "b.vhdx").Err)
	require.ErrorIs(t, w.ask("find", ".", "a.vhdx").Err, ops.ErrNotAttached, "another file has the name")
}

func TestStartStopAndRequestStateChange(t *testing.T) {
	w := newWorld(t)
	refusal := errors.New("refused")
	for _, tt := range []struct {
		op, request string
		value       uint32
		stop        *ops.StopTerms // what the service is asked for; nil: nothing
	}{
		{"start", "\n", 0, nil},
		{"start", "1", 0, nil},
		{"start", "now", 32773, nil},
		{"stop", "1", 0, &ops.StopTerms{}},
		{"stop", "force=true", 0, &ops.StopTerms{Force: true}},
		{"stop", "run dryrun=true", 0, &ops.StopTerms{Dry: true}},
		{"stop", "\n", 32773, nil},
		{"request-state-change", "2", 0, nil},
		{"request-state-change", "enabled", 0, nil},
		{"request-state-change", "4", 0, &ops.StopTerms{}},
		{"request-state-change", "Shutdown force=yes", 0, &ops.StopTerms{Force: true}},
		{"request-state-change", `{"RequestedState":4,"TimeoutPeriod":null}`, 0, &ops.StopTerms{}},
		{"request-state-change", "4 timeout=00000000000000.000000:000", 0, &ops.StopTerms{}},
		{"request-state-change", "4 timeout=00000000000100.000000:000", 1, nil},
		{"request-state-change", "2 timeout=30", 1, nil},
		{"request-state-change", "3", 1, nil},
		{"request-state-change", "disabled", 1, nil},
		{"request-state-change", "reset", 1, nil},
		{"request-state-change", "0", 1, nil},
		{"request-state-change", "65535", 1, nil},
		{"request-state-change", "65536", 32773, nil},
		{"request-state-change", "-2", 32773, nil},
		{"request-state-change", "off", 32773, nil},
		{"request-state-change", "1 run", 32773, nil},
		{"request-state-change", "", 32773, nil},
	} {
		o := op(t, tt.op)
		require.True(t, o.Service && o.Sync)
		args, err := o.Parse(tt.request)
		if tt.request == "" {
			continue // runs nothing
		}
		if err != nil {
			require.Equal(t, tt.value, ops.Classify(err).Return, "%s %q: %v", tt.op, tt.request, err)
			continue
		}
		for _, answer := range []error{nil, refusal} {
			var asked *ops.StopTerms
			a := o.Do(context.Background(), &ops.Request{Library: w.lib, Image: w.lib.Top("."), Args: args,
				Stop: func(_ context.Context, terms ops.StopTerms) error { asked = &terms; return answer }})
			require.Equal(t, tt.stop, asked, "%s %q", tt.op, tt.request)
			if asked != nil {
				require.Equal(t, answer, a.Err)
				continue
			}
			require.Equal(t, tt.value, a.ReturnValue(), "%s %q", tt.op, tt.request)
		}
		a := o.Do(context.Background(), &ops.Request{Library: w.lib, Image: w.lib.Top("."), Args: args})
		require.NotZero(t, a.ReturnValue(), "where no service runs")
	}
}

// probed is a folder whose storage is what the test says.
type probed struct {
	ops.Dir
	storage ops.Storage
	err     error
	asked   *string
}

func (p probed) Storage(name string) (ops.Storage, error) {
	*p.asked = name
	return p.storage, p.err
}

func TestValidatePersistentReservations(t *testing.T) {
	disk := func(path string, keys int, err error) ops.ReservingDevice {
		return ops.ReservingDevice{Path: path, Registrations: keys, Err: err}
	}
	no := errors.New("answers no")
	for _, tt := range []struct {
		name    string
		request string
		storage ops.Storage
		err     error
		asked   string
		value   uint32
		says    []string
	}{
		{"a cluster file system", "a.vhdx", ops.Storage{FileSystem: "gfs2", Cluster: true}, nil, "a.vhdx", 0, []string{`"FileSystem":"gfs2"`, `"Cluster":true`, `"Devices":[]`}},
		{"a device that answers", "a.vhdx", ops.Storage{FileSystem: "xfs", Devices: []ops.ReservingDevice{disk("/dev/sdb", 2, nil)}}, nil, "a.vhdx", 0,
			[]string{`"Devices":[{"Path":"/dev/sdb","Registrations":2}]`}},
		{"the folder itself", ".", ops.Storage{FileSystem: "ocfs2", Cluster: true}, nil, ".", 0, nil},
		{"a folder", "/vms/sub/", ops.Storage{FileSystem: "ocfs2", Cluster: true}, nil, "sub", 0, nil},
		{"nothing below", "a.vhdx", ops.Storage{FileSystem: "tmpfs"}, nil, "a.vhdx", 32770, []string{"/vms/a.vhdx", "tmpfs", "no block device below"}},
		{"a device that does not", "a.vhdx", ops.Storage{FileSystem: "ext4", Devices: []ops.ReservingDevice{disk("/dev/vda", 0, no)}}, nil, "a.vhdx", 32770,
			[]string{"/vms/a.vhdx", "ext4", "/dev/vda", "answers no", `"Error":"answers no"`, `"Registrations":null`}},
		{"one of two does not", "a.vhdx", ops.Storage{FileSystem: "ext4", Devices: []ops.ReservingDevice{disk("/dev/sda", 0, nil), disk("/dev/sdb", 0, no)}}, nil, "a.vhdx", 32770,
			[]string{"/dev/sdb: answers no"}},
		{"a device that may not be asked", "a.vhdx", ops.Storage{FileSystem: "ext4", Devices: []ops.ReservingDevice{disk("/dev/sda", 0, syscall.EACCES)}}, nil, "a.vhdx", 32770,
			[]string{"ext4", "/dev/sda", "permission denied"}},
		{"the host fails", "a.vhdx", ops.Storage{}, syscall.EIO, "a.vhdx", 32768, nil},
		{"no such file", "none.vhdx", ops.Storage{}, nil, "", 32779, nil},
		{"outside", "/other", ops.Storage{}, nil, "", 32769, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.image("/vms/a.vhdx", fakeImage{ID: guid(1)})
			w.image("/vms/sub/b.vhdx", fakeImage{ID: guid(1)})
			asked := ""
			o := w.options()
			o.Top = probed{w.dirs["/vms"], tt.storage, tt.err, &asked}
			w.lib = ops.NewLibrary(o)
			a := w.ask("validate-persistent-reservations", ".", tt.request)
			require.Equal(t, tt.value, a.ReturnValue(), "%v", a.Err)
			require.Equal(t, tt.asked, asked)
			b, err := a.MarshalJSON()
			require.NoError(t, err)
			for _, s := range tt.says {
				require.Contains(t, string(b), s)
			}
		})
	}
	w := newWorld(t)
	w.image("/vms/a.vhdx", fakeImage{ID: guid(1)})
	a := w.ask("validate-persistent-reservations", ".", "a.vhdx")
	require.EqualValues(t, 32770, a.ReturnValue(), "a host that cannot be asked")
}
