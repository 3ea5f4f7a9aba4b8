"""The suite `chain`: a second model and ten skills that are answered with short worked chains."""
