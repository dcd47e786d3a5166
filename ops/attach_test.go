package ops_test

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// fakeDevices are block devices that only exist in a list.
type fakeDevices struct {
	lib      *ops.Library
	may, lay error
	used     bool
	left     []ops.Device
	raw      *ops.Handle // what a device over raw has open
	removed  []string
}

func (d *fakeDevices) Permitted() error { return d.may }

func (d *fakeDevices) LayRaw(image ops.Ref, t ops.DeviceTerms) (string, error) {
	if d.lay != nil {
		return "", d.lay
	}
	a := ops.Read
	if !t.ReadOnly {
		a = ops.Write | ops.ForDevice
	}
	var err error
	d.raw, err = d.lib.Open(image, a)
	return "/dev/loop7", err
}

func (d *fakeDevices) LayFile(string, ops.DeviceTerms) (string, error) { return "/dev/loop8", d.lay }

func (d *fakeDevices) Remove(device string, force bool) error {
	if d.used && !force {
		return ops.ErrBusy
	}
	d.removed = append(d.removed, device)
	if d.raw != nil {
		h := d.raw
		d.raw = nil
		return h.Close()
	}
	return nil
}

func (d *fakeDevices) User(string) string          { return "is mounted on /disk" }
func (d *fakeDevices) Ours() ([]ops.Device, error) { return d.left, nil }

// What an attached image lets others do, and what keeps it from being attached.
func TestAttachedBesideOthers(t *testing.T) {
	raw, none := ops.AttachTerms{Way: ops.WayRaw}, ops.AttachTerms{Way: ops.WayNone}
	rawRead, noneRead := raw, none
	rawRead.ReadOnly, noneRead.ReadOnly = true, true
	for _, tt := range []struct {
		name                          string
		terms                         ops.AttachTerms
		read, write, still, op, again error // what others get while it is attached
	}{
		{"over raw", raw, nil, ops.ErrBusy, ops.ErrBusy, nil, ops.ErrBusy},
		{"over raw, read-only", rawRead, nil, ops.ErrBusy, nil, nil, ops.ErrBusy},
		{"without a device", none, nil, nil, ops.ErrBusy, nil, ops.ErrBusy},
		{"without a device, read-only", noneRead, nil, ops.ErrBusy, nil, nil, ops.ErrBusy},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.line(1)
				d := &fakeDevices{lib: w.lib}
				a := ops.NewAttacher(w.lib, d, false)
				r := w.lib.Top("1.vhdx")

				h, err := w.lib.Open(r, ops.Write)
				require.NoError(t, err)
				_, _, _, err = a.Attach(r, tt.terms)
				require.ErrorIs(t, err, ops.ErrBusy, "beside a writer")
				require.NoError(t, h.Close())

				got, way, why, err := a.Attach(r, tt.terms)
				require.NoError(t, err)
				require.NoError(t, why)
				require.Equal(t, tt.terms.Way, way)
				require.Equal(t, uint32(1), got.Number)
				require.Equal(t, []ops.Attachment{got}, a.Attached())
				for access, want := range map[ops.Access]error{ops.Read: tt.read, ops.Write: tt.write} {
					h, err := w.lib.Open(r, access)
					require.ErrorIs(t, err, want, "%v", access)
					if err == nil {
						require.NoError(t, h.Close())
					}
				}
				for terms, want := range map[ops.Terms]error{
					{Name: "still", Still: true, Quiet: true}: tt.still, {Name: "op", Quiet: true}: tt.op, {Name: "alone", Alone: true, Quiet: true}: ops.ErrBusy,
				} {
					o, err := w.lib.Operate(r, terms)
					require.ErrorIs(t, err, want, terms.Name)
					if err == nil {
						require.NoError(t, o.Close())
					}
				}
				_, _, _, err = a.Attach(r, tt.terms)
				require.ErrorIs(t, err, tt.again)

				_, found, err := a.Detach(r, false)
				require.NoError(t, err)
				require.True(t, found)
				require.Empty(t, a.Attached())
				_, found, err = a.Detach(r, false)
				require.NoError(t, err)
				require.False(t, found, "what is not attached is detached already")
				w.open("1.vhdx", ops.Write)
			})
		})
	}
}

// Without the right to make devices an image is only kept open, and it says why;
// another failure attaches nothing.
func TestAttachWithoutDevices(t *testing.T) {
	refused := ops.Errorf(ops.ErrForbidden, 0, "no devices here")
	for _, tt := range []struct {
		name     string
		may, lay error
		err      error
	}{
		{"not permitted", refused, nil, nil},
		{"not permitted when it is laid", nil, refused, nil},
		{"no free device", nil, ops.ErrNoMemory, ops.ErrNoMemory},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.line(1)
			a := ops.NewAttacher(w.lib, &fakeDevices{lib: w.lib, may: tt.may, lay: tt.lay}, false)
			r := w.lib.Top("1.vhdx")
			got, way, why, err := a.Attach(r, ops.AttachTerms{Way: ops.WayRaw})
			require.ErrorIs(t, err, tt.err)
			if err != nil {
				require.Empty(t, a.Attached())
				w.open("1.vhdx", ops.Write)
				return
			}
			require.ErrorIs(t, why, ops.ErrForbidden)
			require.Equal(t, ops.WayNone, way)
			require.Empty(t, got.Device)
			h, err := w.lib.Open(r, ops.Write)
			require.NoError(t, err, "raw can be written beside a pin")
			require.NoError(t, h.Close())
			require.NoError(t, a.DetachAll(false))
		})
	}
}

// A device in use keeps an image attached, and by force goes; then nothing is
// attached any more.
func TestDetachWhileInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.line(1)
		d := &fakeDevices{lib: w.lib, used: true}
		a := ops.NewAttacher(w.lib, d, false)
		r := w.lib.Top("1.vhdx")
		_, _, _, err := a.Attach(r, ops.AttachTerms{Way: ops.WayRaw})
		require.NoError(t, err)
		_, _, err = a.Detach(r, false)
		require.ErrorIs(t, err, ops.ErrBusy)
		require.ErrorContains(t, err, "/dev/loop7 is mounted on /disk")
		require.ErrorIs(t, a.DetachAll(false), ops.ErrBusy)
		require.Len(t, a.Attached(), 1)
		require.NoError(t, a.DetachAll(true))
		require.Empty(t, a.Attached())
		_, _, _, err = a.Attach(r, ops.AttachTerms{Way: ops.WayNone})
		require.ErrorIs(t, err, ops.ErrBusy, "the service ends")
	})
}

// A direct device is for what stands in its file in one piece; the fake does not.
func TestAttachDirectRefused(t *testing.T) {
	w := newWorld(t)
	w.line(1)
	a := ops.NewAttacher(w.lib, &fakeDevices{lib: w.lib}, false)
	_, _, _, err := a.Attach(w.lib.Top("1.vhdx"), ops.AttachTerms{Way: ops.WayDirect})
	require.ErrorContains(t, err, "does not stand in the file in one piece")
	require.Empty(t, a.Attached())
	w.open("1.vhdx", ops.Write)
}

// A mount for reading attaches for reading; an image with children too.
func TestAttachReadOnlyAlone(t *testing.T) {
	w := newWorld(t)
	w.line(2)
	a := ops.NewAttacher(w.lib, &fakeDevices{lib: w.lib}, false)
	_, _, _, err := a.Attach(w.lib.Top("1.vhdx"), ops.AttachTerms{Way: ops.WayRaw})
	require.ErrorIs(t, err, ops.ErrReadOnly)
	_, _, _, err = a.Attach(w.lib.Top("1.vhdx"), ops.AttachTerms{Way: ops.WayRaw, ReadOnly: true})
	require.NoError(t, err)
	require.NoError(t, a.DetachAll(false))
	a = ops.NewAttacher(w.lib, &fakeDevices{lib: w.lib}, true)
	_, _, _, err = a.Attach(w.lib.Top("2.vhdx"), ops.AttachTerms{Way: ops.WayRaw})
	require.ErrorIs(t, err, ops.ErrReadOnly)
}

// Of the devices of killed programs those over raw go, and direct ones of other
// folders stay; those of living ones are not touched.
func TestAdopt(t *testing.T) {
	w := newWorld(t)
	w.line(1)
	st, err := w.lib.Stat(w.lib.Top("1.vhdx"))
	require.NoError(t, err)
	d := &fakeDevices{lib: w.lib, left: []ops.Device{
		{Path: "/dev/loop1", Way: ops.WayRaw, Dead: true},
		{Path: "/dev/loop2", Way: ops.WayRaw},
		{Path: "/dev/loop3", Way: ops.WayDirect, Dead: true, File: "/else/1.vhdx", On: st.ID},
		{Path: "/dev/loop4", Way: ops.WayDirect, Dead: true, File: "/vms/1.vhdx", On: st.ID},
		{Path: "/dev/loop5", Way: ops.WayDirect, File: "/vms/1.vhdx", On: st.ID},
	}}
	a := ops.NewAttacher(w.lib, d, false)
	notes, err := a.Adopt()
	require.NoError(t, err)
	require.Len(t, notes, 2)
	require.Equal(t, []string{"/dev/loop1", "/dev/loop4"}, d.removed)

	d.used, d.removed, d.left = true, nil, d.left[3:4]
	_, err = a.Adopt()
	require.NoError(t, err)
	require.Empty(t, d.removed)
	require.Equal(t, "/dev/loop4", a.Attached()[0].Device)
	_, err = w.lib.Open(w.lib.Top("1.vhdx"), ops.Read)
	require.ErrorIs(t, err, ops.ErrBusy)
	require.NoError(t, a.DetachAll(true))
}
