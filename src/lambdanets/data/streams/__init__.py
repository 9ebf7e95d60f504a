"""Sources that are read in sequence: WebDataset's tar files and parquet files of Hugging Face."""
