package ops_test

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"

	"vhdfs/ops"
)

// What operations can ask of a fake image. Each change is one write of the line
// of JSON, and a sync.

var (
	_ ops.Relinker     = (*fakeWriter)(nil)
	_ ops.Settable     = (*fakeWriter)(nil)
	_ ops.Repairer     = (*fakeWriter)(nil)
	_ ops.Checker      = (*fakeLayer)(nil)
	_ ops.TableChecker = (*fakeLayer)(nil)
)

func (w *fakeWriter) change(label string, f func(im *fakeImage)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	im := w.fakeImage
	f(&im)
	line, err := json.Marshal(im)
	if err != nil {
		return err
	}
	b := make([]byte, fakeData)
	copy(b, append(line, '\n'))
	if _, err := w.f.WriteAt(b, 0); err != nil {
		return err
	}
	if err := w.f.Sync(label); err != nil {
		return err
	}
	w.fakeImage = im
	return nil
}

func (w *fakeWriter) SetParent(p ops.CreateParent) error {
	return w.change("fake.parent", func(im *fakeImage) {
		im.Parent = []string{p.LinkID.String()}
		if !p.NextID.IsZero() {
			im.Parent = append(im.Parent, p.NextID.String())
		}
		if !im.Time.IsZero() {
			im.Time = p.Timestamp
		}
		im.Paths = nil
		if p.Relative != "" {
			im.Paths = append(im.Paths, fakePath{ops.PathRelative, strings.ReplaceAll(p.Relative, "/", `\`)})
		}
		if p.Absolute != "" {
			im.Paths = append(im.Paths, fakePath{ops.PathAbsolute, strings.ReplaceAll(p.Absolute, "/", `\`)})
		}
	})
}

func (w *fakeWriter) UnreadParent() ([]byte, error) { return nil, nil }

func (w *fakeWriter) SetPhysicalSector(n uint32) error {
	return w.change("fake.physical", func(im *fakeImage) { im.Physical = n })
}

func (w *fakeWriter) SetDiskID(id ops.GUID) error {
	return w.change("fake.id", func(im *fakeImage) { im.Disk = id.String() })
}

func (w *fakeWriter) Repair(ctx context.Context, report func(ops.Anomaly) error) error {
	for _, text := range slices.Clone(w.Findings) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !strings.HasPrefix(text, "mend") {
			continue
		}
		if err := report(fakeFinding(text)); err != nil {
			return err
		}
		err := w.change("fake.mend", func(im *fakeImage) {
			im.Findings = slices.DeleteFunc(slices.Clone(im.Findings), func(s string) bool { return s == text })
			im.ReadOnly = ""
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func fakeFinding(text string) ops.Anomaly {
	return ops.Anomaly{Name: "fake.finding", Severity: ops.Broken, Where: "head", Text: text}
}

func (l *fakeLayer) Check(ctx context.Context, report func(ops.Anomaly)) error {
	return l.CheckTable(ctx, report)
}

func (l *fakeLayer) CheckTable(ctx context.Context, report func(ops.Anomaly)) error {
	for _, text := range l.Findings {
		if err := ctx.Err(); err != nil {
			return err
		}
		report(fakeFinding(text))
	}
	return nil
}

// stored is the head of a fake image as it stands in its file.
func (w *world) stored(path string) fakeImage {
	w.Helper()
	b, err := w.host.ReadFile(path)
	if err != nil {
		w.Fatal(err)
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	var im fakeImage
	if err := json.Unmarshal(line, &im); err != nil {
		w.Fatal(err)
	}
	return im
}
