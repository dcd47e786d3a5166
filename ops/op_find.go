package ops

import "context"

// opFind looks for an image among those that are attached.
var opFind = &Op{
	Name:    "find",
	Method:  "FindMountedStorageImageInstance",
	Brief:   "how an image is attached",
	Service: true,
	Sync:    true,
	Args: []Arg{
		{Name: "SelectionCriterion", Short: "path", Kind: ArgPath, Required: true, Bare: true, Help: "the image"},
		{Name: "CriterionType", Short: "by", Kind: ArgWord, Words: []Word{{"path", 2}}, Default: "path", Help: "what the criterion is"},
	},
	Run: runFind,
}

// runFind compares files, not names: an image may have several. Image is null, and
// the failure ErrNotAttached, where the image is not attached or not there.
func runFind(_ context.Context, r *Request) (Fields, error) {
	ref, err := r.place("path", r.Args.Text("SelectionCriterion"), r.Library.opts.Search...)
	if err != nil {
		return Fields{{"Image", nil}}, err
	}
	a, ok := r.Library.AttachedAs(ref)
	if !ok {
		return Fields{{"Image", nil}}, Errorf(ErrNotAttached, 0, "%s", ref.Path())
	}
	return Fields{{"Image", a.Describe()}}, nil
}
