package ops_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// Operation, format and type, with real images: a control file is exactly where the
// operation can ever apply, and elsewhere the answer is that of the service.
func TestMatrixOfSizeAndSpace(t *testing.T) {
	const no, yes, never = "EOPNOTSUPP", "", "no control file"
	for _, tt := range []struct {
		name, image, format          string
		make                         []string // requests of create
		grow, equal, shrink, compact string
	}{
		{"fixed VHD", "a.vhd", "vhd", []string{"a.vhd type=fixed size=8M"}, yes, yes, no, yes},
		{"dynamic VHD", "a.vhd", "vhd", []string{"a.vhd type=dynamic size=8M"}, yes, yes, no, yes},
		{"differencing VHD", "c.avhd", "vhd", []string{"a.vhd type=dynamic size=8M", "c.avhd parent=a.vhd"}, never, never, never, yes},
		{"fixed VHDX", "a.vhdx", "vhdx", []string{"a.vhdx type=fixed size=8M"}, yes, yes, yes, yes},
		{"dynamic VHDX", "a.vhdx", "vhdx", []string{"a.vhdx type=dynamic size=8M block=1M"}, yes, yes, yes, yes},
		{"differencing VHDX", "c.avhdx", "vhdx", []string{"a.vhdx type=dynamic size=8M", "c.avhdx parent=a.vhdx block=1M"}, yes, yes, yes, yes},
		{"a VHDX by the name of a VHD", "b.vhd", "vhdx", []string{"a.vhdx type=dynamic size=8M"}, yes, yes, yes, yes},
		{"floppy", "f.vfd", "vfd", nil, never, never, never, never},
		{"CD", "c.iso", "iso", nil, never, never, never, never},
		{"not an image", "x.vhdx", "", nil, never, never, never, never},
		{"a child without its parent", "c.avhdx", "vhdx", []string{"a.vhdx size=8M", "c.avhdx parent=a.vhdx"}, "ENOLINK", "ENOLINK", "ENOLINK", "ENOLINK"},
		{"a parent", "a.vhdx", "vhdx", []string{"a.vhdx size=8M", "c.avhdx parent=a.vhdx"}, "EROFS", "EROFS", "EROFS", yes},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := makingWorld(t)
			for _, request := range tt.make {
				require.NoError(t, w.ask("create", ".", request).Err)
			}
			switch tt.name {
			case "floppy":
				require.NoError(t, w.ask("create-floppy", ".", "f.vfd").Err)
			case "CD":
				w.put("/vms/c.iso", append(make([]byte, 32769), append([]byte("CD001"), make([]byte, 8<<10)...)...))
			case "not an image":
				w.put("/vms/x.vhdx", make([]byte, mib))
			case "a VHDX by the name of a VHD":
				require.NoError(t, w.host.Dir("/vms").Rename("a.vhdx", "b.vhd"))
			case "a child without its parent":
				require.NoError(t, w.host.Dir("/vms").Rename("a.vhdx", "gone"))
			}
			found, err := w.lib.Inspect(w.lib.Top(tt.image))
			require.NoError(t, err)
			if tt.format == "" {
				require.Error(t, found.Err)
			} else {
				require.Equal(t, tt.format, found.Format.Name)
			}
			size, compacted := op(t, "resize"), op(t, "compact")
			require.Equal(t, tt.grow != never, size.Can(found), "resize")
			require.Equal(t, tt.compact != never, compacted.Can(found), "compact")
			for _, ask := range []struct{ name, request, want string }{
				{"resize", "8M", tt.equal}, {"resize", "10M", tt.grow}, {"resize", "7M unsafe=true", tt.shrink},
				{"compact", "mode=full", tt.compact}, {"compact", "mode=quick", tt.compact}, {"compact", "mode=retrim", tt.compact},
				{"compact", "mode=pretrimmed", tt.compact}, {"compact", "mode=prezeroed", tt.compact}, {"compact", "1", tt.compact},
			} {
				if ask.want == never {
					a := w.ask(ask.name, tt.image, ask.request)
					require.Error(t, a.Err, "who asks all the same")
					continue
				}
				a := w.ask(ask.name, tt.image, ask.request)
				require.Equal(t, ask.want, ops.Errno(a.Err), "%s %s: %v", ask.name, ask.request, a.Err)
				if ask.want == no && ask.name == "resize" {
					require.Equal(t, uint32(32770), a.ReturnValue())
					require.Equal(t, ops.StatusWrongType, ops.StatusOf(a.Err))
					require.Contains(t, a.Sentence(), "a VHD does not shrink")
				}
			}
			if tt.shrink == yes {
				require.Equal(t, int64(7*mib), w.found(tt.image).Size)
			}
		})
	}
}
